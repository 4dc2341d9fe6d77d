//! The hash of what a model is: of a file's bytes, or of a folder's files.

use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// SHA-256 of a model's content, 64 hexadecimal digits.
///
/// Of a file it is what `sha256sum FILE` prints. Of a folder it covers every `.json` and `.safetensors` file in it and in
/// the folders in it, hidden ones left out, and is what this prints:
///
/// ```sh
/// cd FOLDER && find -L . -maxdepth 2 -name '.?*' -prune -o -type f \( -name '*.json' -o -name '*.safetensors' \) -print |
///     LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(String);

impl ContentHash {
    /// From its 64 digits, if they are.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        digits.then(|| Self(text.to_string()))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Of a file or folder; none where a folder has no file that counts.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        if !path.is_dir() {
            return Ok(Some(Self(hex(&file(path)?))));
        }
        let mut names: Vec<PathBuf> = files(path, 2)?;
        if names.is_empty() {
            return Ok(None);
        }
        // Bytewise, as `LC_ALL=C sort`: paths compare part by part.
        names.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
        let mut list = Sha256::new();
        for name in names {
            list.update(hex(&file(&path.join(&name))?));
            list.update(b"  ./");
            list.update(name.as_os_str().as_encoded_bytes());
            list.update(b"\n");
        }
        Ok(Some(Self(hex(&list.finalize()))))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What tells, without reading them, whether files are still those that were hashed: length, time and place of each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<(PathBuf, u64, Option<std::time::SystemTime>)>);

impl Stamp {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let mut names = if path.is_dir() { files(path, 2)? } else { vec![PathBuf::new()] };
        names.sort();
        let stamp = |name: PathBuf| {
            let place = if name.as_os_str().is_empty() { path.to_path_buf() } else { path.join(&name) };
            let metadata = fs::metadata(place)?;
            Ok((name, metadata.len(), metadata.modified().ok()))
        };
        names.into_iter().map(stamp).collect::<io::Result<_>>().map(Self)
    }
}

/// The files that count, by their paths in the folder.
fn files(folder: &Path, depth: usize) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = PathBuf::from(entry?.file_name());
        let path = folder.join(&name);
        if name.as_os_str().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            if depth > 1 {
                found.extend(files(&path, depth - 1)?.into_iter().map(|inner| name.join(inner)));
            }
        } else if name.extension().is_some_and(|end| end == "json" || end == "safetensors") && path.is_file() {
            found.push(name);
        }
    }
    Ok(found)
}

fn file(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
