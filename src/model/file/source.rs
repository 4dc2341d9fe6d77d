//! Where a file's bytes come from: memory, or a file that is read piece by piece, when its bytes are asked for.
//!
//! Files are read and not mapped: one that is cut short meanwhile is then an error and not a signal that ends the
//! process.

use crate::error::{Error, Result};
use crate::ffi::scratch::zeroed;
use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The bytes of one safetensors file.
pub(crate) enum Source<'a> {
    /// In memory.
    Bytes(Cow<'a, [u8]>),
    /// In a regular file.
    File {
        /// The open file; without it, one that is opened for each read.
        file: Option<File>,
        path: PathBuf,
        /// What the system said of it when it was opened.
        opened: Box<Metadata>,
    },
}

impl Source<'static> {
    /// Opens a file, and keeps it open unless it is one of very many, which a process may not have open all at once.
    /// What is no regular file, a pipe for one, is read to its end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open(path: &Path, keep_open: bool) -> Result<Self> {
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let mut file = File::open(path).map_err(io)?;
        let opened = file.metadata().map_err(io)?;
        if opened.is_file() {
            let file = keep_open.then_some(file);
            return Ok(Self::File { file, path: path.to_path_buf(), opened: Box::new(opened) });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        Ok(Self::Bytes(bytes.into()))
    }
}

impl Source<'_> {
    /// How many bytes there are.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { opened, .. } => opened.len(),
        }
    }

    /// Some of the bytes, which lie within [`len`](Self::len).
    ///
    /// # Errors
    /// [`Error::InputChanged`] where the file has become shorter, [`Error::OutOfMemory`], [`Error::Io`].
    pub(crate) fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        match self {
            Self::Bytes(bytes) => Ok(Cow::Borrowed(&bytes[range.start as usize..range.end as usize])),
            Self::File { .. } => {
                let mut bytes = zeroed((range.end - range.start) as usize)?;
                self.read_into(range.start, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// As many bytes from `start` on as `to` has.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn read_into(&self, start: u64, to: &mut [u8]) -> Result<()> {
        match self {
            Self::Bytes(bytes) => to.copy_from_slice(&bytes[start as usize..][..to.len()]),
            Self::File { file, path, .. } => {
                let read = match file {
                    Some(file) => read_at(file, start, to),
                    None => File::open(path).and_then(|file| read_at(&file, start, to)),
                };
                read.map_err(|source| {
                    let path = path.display().to_string();
                    match source.kind() {
                        std::io::ErrorKind::UnexpectedEof => Error::InputChanged { path },
                        _ => Error::Io { path, source },
                    }
                })?
            }
        }
        Ok(())
    }

    /// An error if the file has been written to since it was opened.
    ///
    /// # Errors
    /// [`Error::InputChanged`].
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        if let Self::File { file, path, opened } = self {
            let now = file.as_ref().map_or_else(|| std::fs::metadata(path), File::metadata).ok();
            let same = |now: &Metadata| now.len() == opened.len() && now.modified().ok() == opened.modified().ok();
            if !now.is_some_and(|now| same(&now)) {
                return Err(Error::InputChanged { path: path.display().to_string() });
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &File, start: u64, to: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, start)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, start: u64, to: &mut [u8]) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(to)
}

/// Whether an ONNX model's first field behind its version, its producer, is one of those known.
fn has_producer(start: &[u8]) -> bool {
    let early = &start[..start.len().min(64)];
    let producers: [&[u8]; 3] = [b"onnx", b"pytorch", b"tf2onnx"];
    producers.into_iter().any(|producer| early.windows(producer.len()).any(|at| at == producer))
}

/// What a file is that is no safetensors file, and what to do with it, where its first bytes or its name tell.
pub(crate) fn known_kind(start: &[u8], path: Option<&Path>) -> Option<(&'static str, &'static str)> {
    const PYTORCH: &str = "load it in PyTorch and store it by examples/export.py, or by safetensors.torch.save_file";
    let text = start.trim_ascii_start();
    let extension = path.and_then(Path::extension).and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if start.starts_with(b"version https://git-lfs") {
        Some(("a Git LFS pointer: the file itself was not downloaded", "fetch it with `git lfs pull`"))
    } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        match extension.as_str() {
            "npz" => Some(("a NumPy archive (npz)", "store its arrays by safetensors.numpy.save_file")),
            _ => Some(("a zip archive, as torch.save writes it", PYTORCH)),
        }
    } else if start.starts_with(b"\x80") && start.get(1).is_some_and(|version| (1..=5).contains(version)) {
        Some(("a Python pickle, as torch.save once wrote it", PYTORCH))
    } else if start.starts_with(b"GGUF") {
        Some(("a GGUF file", "use the model's safetensors files: GGUF's weights are quantized in another way"))
    } else if start.starts_with(b"\x93NUMPY") {
        Some(("a NumPy array (npy)", "store it by safetensors.numpy.save_file"))
    } else if start.starts_with(b"\x89HDF") {
        Some(("an HDF5 file, as Keras writes it", "convert it to safetensors"))
    } else if extension == "onnx" || start.starts_with(b"\x08") && has_producer(start) {
        Some(("an ONNX model", "use the PyTorch model that it was made from"))
    } else if text.get(..5).is_some_and(|tag| tag.eq_ignore_ascii_case(b"<html") || tag.eq_ignore_ascii_case(b"<!doc"))
    {
        Some(("a web page (HTML)", "download the file itself, not the page that shows it"))
    } else if text.starts_with(b"{") {
        Some(("a JSON text", "give the safetensors file, its index of shards, or their folder"))
    } else {
        None
    }
}
