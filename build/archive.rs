//! What a static library holds: enough of it to say in one line why it can't be linked.

use std::path::Path;

/// Refuses an archive that holds no objects, or objects that are not this target's machine code.
pub fn check(path: &Path) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let refuse = |why: &str| Err(format!("{} can't be linked: {why}", path.display()));
    let thin = bytes.starts_with(b"!<thin>\n");
    if !thin && !bytes.starts_with(b"!<arch>\n") {
        return refuse("it is no archive of objects");
    }
    let mut objects = 0;
    let mut rest = bytes.get(8..).unwrap_or_default();
    while rest.len() >= HEADER {
        let (header, after) = rest.split_at(HEADER);
        let size: usize = match std::str::from_utf8(&header[48..58]).map(|digits| digits.trim().parse()) {
            Ok(Ok(size)) => size,
            _ => return refuse("it is a broken archive"),
        };
        // The index and the table of long names begin so; a thin archive holds these alone, and names the rest.
        let own = header.starts_with(b"/ ") || header.starts_with(b"//") || header.starts_with(b"/SYM64/");
        let member = if thin && !own { &[][..] } else { after.get(..size).unwrap_or_default() };
        if !own {
            objects += 1;
            if let Some(why) = (!thin).then(|| unusable(member)).flatten() {
                return refuse(why);
            }
        }
        let held = if thin && !own { 0 } else { size.next_multiple_of(2) };
        rest = after.get(held..).unwrap_or_default();
    }
    if objects == 0 { refuse("it holds no objects") } else { Ok(()) }
}

const HEADER: usize = 60;

/// Why this object is of no use.
fn unusable(object: &[u8]) -> Option<&'static str> {
    const X86_64: u16 = 62;
    match object {
        [0x7f, b'E', b'L', b'F', 1, ..] => Some("its objects have 32 bits, expected 64"),
        [0x7f, b'E', b'L', b'F', 2, rest @ ..] => {
            let machine = rest.get(13..15).map(|two| u16::from_le_bytes([two[0], two[1]]));
            (machine != Some(X86_64)).then_some("its objects are another architecture's, expected x86-64")
        }
        [b'B', b'C', 0xc0, 0xde, ..] => {
            Some("its objects are clang's intermediate code (-flto), expected machine code")
        }
        _ => Some("its objects are not ELF"),
    }
}
