//! Where the links of README.md and benches/README.md lead in the crate's documentation.
//!
//! Both name files by paths in the repository, which the documentation does not have. In Markdown the first definition
//! of a link's name counts, so `src/lib.rs` and `src/pages.rs` put these before the text: pages of the documentation
//! for texts, and for pictures the pictures themselves.

use crate::env;
use std::path::Path;

const PICTURES: &str = "benches/plots";

/// Writes `links.md` to the build's folder.
pub fn write_links() -> Result<(), String> {
    let mut links = String::new();
    for (file, page) in
        [("benches/README.md", "figures"), ("examples/export.py", "export"), ("vendor/README.md", "vendor")]
    {
        links += &format!("[{file}]: crate::pages::{page}\n");
    }
    let io = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let folder = Path::new(PICTURES);
    let entries = folder.read_dir().and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(|e| io(folder, e))?;
    let mut pictures: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    pictures.retain(|path| path.extension().is_some_and(|e| e == "svg"));
    pictures.sort();
    for path in pictures {
        let bytes = std::fs::read(&path).map_err(|e| io(&path, e))?;
        links += &format!("[{}]: data:image/svg+xml,{}\n", path.display(), percent_encoded(&bytes));
    }
    let path = env::out_dir().join("links.md");
    std::fs::write(&path, links + "\n").map_err(|e| io(&path, e))
}

/// As an address has it: all but letters and digits as `%` and two digits.
fn percent_encoded(bytes: &[u8]) -> String {
    let encode = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(*byte).to_string(),
        other => format!("%{other:02X}"),
    };
    bytes.iter().map(encode).collect()
}
