//! Encoders' folders: real ones with their configuration, tokenizer, modules and weights changed, and odd texts.

use crate::mutate;
use arbitrary::{Result, Unstructured};
use fbgemm_encoder::{Encoder, EncoderOptions, Truncation};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Small real models of each kind.
const REAL: [&str; 6] = ["bert-dense", "bert-labels", "roberta", "xlm-roberta", "distilbert", "mpnet"];

struct Folder {
    /// By the path within the folder.
    files: Vec<(PathBuf, Vec<u8>)>,
}

/// A folder with small models for the encoder, of this repository.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoder/tests/golden").join(name)
}

fn real() -> &'static [Folder] {
    static FOLDERS: OnceLock<Vec<Folder>> = OnceLock::new();
    fn read(root: &Path, within: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
        let entries = std::fs::read_dir(root.join(within)).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
        for entry in entries.flatten() {
            let path = within.join(entry.file_name());
            if root.join(&path).is_dir() {
                read(root, &path, files);
            } else if path.as_os_str() != "golden.json" {
                files.push((path.clone(), std::fs::read(root.join(&path)).expect("a file that is listed")));
            }
        }
    }
    FOLDERS.get_or_init(|| {
        let folder = |name: &&str| {
            let mut files = Vec::new();
            read(&golden(name), Path::new(""), &mut files);
            files.sort(); // not as the disk has them: the same bytes choose the same file everywhere
            Folder { files }
        };
        REAL.iter().map(folder).collect()
    })
}

/// A changed folder, opened, and a few texts.
pub fn encoder(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut work = || -> Result<()> {
        let folder = u.choose(real())?;
        let mut files = folder.files.clone();
        for _ in 0..u.int_in_range(0..=2)? {
            let one = u.choose_index(files.len())?;
            let (path, bytes) = &mut files[one];
            if path.extension().is_some_and(|e| e == "json") {
                *bytes = mutate::json_text(&String::from_utf8_lossy(bytes), &mut u)?;
            } else {
                *bytes = mutate::safetensors(bytes, &mut u)?;
            }
            if u.ratio(1, 16)? {
                files.remove(one);
            }
        }
        let texts: [&str; 3] = ["the cat sat on the mat", u.arbitrary()?, u.arbitrary()?];
        let max_tokens = u.int_in_range(0..=80)?;
        let root = tempfile::tempdir().expect("a folder for temporary files");
        for (path, bytes) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("a new folder");
            std::fs::write(path, bytes).expect("a new file");
        }
        let options =
            if max_tokens > 70 { EncoderOptions::new() } else { EncoderOptions::new().max_tokens(max_tokens) };
        let Ok(encoder) = Encoder::open(root.path(), &options) else { return Ok(()) };
        if let Ok(vectors) = encoder.embed(&texts) {
            assert_eq!(vectors.len(), 3 * encoder.outputs());
        }
        let _ = encoder.tokenize_pairs(&[(texts[0], texts[1])], Truncation::Left);
        let _ = (encoder.embed_pairs(&[(texts[1], texts[2])]), encoder.tokenize_with(&texts, Truncation::Refuse));
        Ok(())
    };
    let _ = work();
}
