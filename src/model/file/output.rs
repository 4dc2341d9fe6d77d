//! A file being written: beside the one that it replaces, whose name it takes when it is whole.

use crate::error::{Error, Result};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A file to be, under a name of its own until it is finished; dropped before, it leaves nothing.
pub(crate) struct Output {
    spool: Temporary,
    /// The file itself: where links lead to.
    path: PathBuf,
    /// What is there already.
    old: Option<Metadata>,
    /// Whether it may be overwritten where it lies if it can't be replaced.
    in_place: bool,
    /// Whether the spool lies in the folder of the file and can take its name.
    beside: bool,
}

impl Output {
    /// Begins a file. A link at `path` stays, and the file that it leads to is written. What is there and no regular
    /// file (a device, a pipe) is not replaced: the content is copied into it at the end.
    ///
    /// # Errors
    /// [`Error::CannotReplace`] where the folder takes no new file, unless `in_place`; [`Error::Io`].
    pub(crate) fn create(path: &Path, in_place: bool) -> Result<Self> {
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let old = match std::fs::metadata(path) {
            Ok(old) if old.is_dir() => return Err(io(ErrorKind::IsADirectory.into())),
            Ok(old) => Some(old),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(io(e)),
        };
        if path.file_name().is_none() {
            return Err(io(io::Error::new(ErrorKind::InvalidInput, "not the path of a file")));
        }
        if old.as_ref().is_some_and(|old| !old.is_file()) {
            let spool = Temporary::elsewhere().map_err(io)?;
            return Ok(Self { spool, path: path.to_path_buf(), old, in_place, beside: false });
        }
        let path = follow_links(path).map_err(io)?;
        let (spool, beside) = match Temporary::new(folder_of(&path), 0o666) {
            Ok(spool) => (spool, true),
            Err(_) if old.is_some() && in_place => (Temporary::elsewhere().map_err(io)?, false),
            Err(source) if old.is_some() && is_no_replacing(&source) => {
                return Err(Error::CannotReplace { path: path.display().to_string(), source });
            }
            Err(source) => return Err(io(source)),
        };
        if let (Some(old), true) = (&old, beside) {
            // From the start, so that the content is never seen by more people than before.
            spool.be_as(old).map_err(io)?;
        }
        Ok(Self { spool, path, old, in_place, beside })
    }

    /// Opens what is written to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open(&self) -> Result<File> {
        let file = OpenOptions::new().write(true).open(&self.spool.path);
        file.map_err(|e| self.failed(e))
    }

    /// The file itself: where links lead to.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where what has been written can be read.
    pub(crate) fn spooled(&self) -> &Path {
        &self.spool.path
    }

    /// An error of the system about this file.
    pub(crate) fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.path.display().to_string(), source }
    }

    /// Puts the file in its place, which must be on the disk by now, so that a crash leaves the old one or the new.
    ///
    /// # Errors
    /// [`Error::CannotReplace`], [`Error::Io`].
    pub(crate) fn finish(self) -> Result<()> {
        if !self.beside {
            return self.copy();
        }
        match std::fs::rename(&self.spool.path, &self.path) {
            Ok(()) => Ok(()),
            // A mount point of its own, as containers have it, or a folder that lets files be written and not renamed.
            Err(source) if self.old.is_some() && is_no_replacing(&source) => match self.in_place {
                true => self.copy(),
                false => Err(Error::CannotReplace { path: self.path.display().to_string(), source }),
            },
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Copies the content into what is there.
    fn copy(&self) -> Result<()> {
        let copy = || {
            let mut from = File::open(&self.spool.path)?;
            let regular = self.old.as_ref().is_some_and(Metadata::is_file);
            if !regular {
                // Gone before a pipe's reader is waited for, where a signal may end the process.
                std::fs::remove_file(&self.spool.path)?;
            }
            let mut to = OpenOptions::new().write(true).truncate(regular).open(&self.path)?;
            io::copy(&mut from, &mut to)?;
            if regular { to.sync_all() } else { Ok(()) }
        };
        copy().map_err(|e| self.failed(e))
    }
}

/// Whether an error says that a file can't be replaced, and perhaps be written to.
fn is_no_replacing(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::ResourceBusy,
        ErrorKind::CrossesDevices,
        ErrorKind::PermissionDenied,
        ErrorKind::ReadOnlyFilesystem,
    ];
    kinds.contains(&error.kind())
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path that a path leads to over links; the last one may lead to nothing yet.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    const MOST: usize = 40; // as Linux has it
    let mut path = path.to_path_buf();
    for _ in 0..MOST {
        match std::fs::read_link(&path) {
            Ok(to) => path = folder_of(&path).join(to),
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => return Ok(path),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("too many links"))
}

/// A new file under a name of its own; removed unless it is renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// One that others may read as `mode` says, less what the process's mask takes away.
    fn new(folder: &Path, mode: u32) -> io::Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        // Short, whatever the name of the file to be, which may be as long as names can be.
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".fbgemm-{}-{count}.tmp", std::process::id()));
            match options.open(&path) {
                Ok(_) => return Ok(Self { path }),
                // Of a process that had this number before.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// One in the folder for such files, where others must not read it.
    fn elsewhere() -> io::Result<Self> {
        Self::new(&std::env::temp_dir(), 0o600)
    }

    /// Gives it the mode of another file, and its owner and group where this process may.
    fn be_as(&self, other: &Metadata) -> io::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, chown};
            let _ = chown(&self.path, None, Some(other.gid()));
            let _ = chown(&self.path, Some(other.uid()), None);
        }
        std::fs::set_permissions(&self.path, other.permissions())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed files are no longer there; of a failed one nothing must stay, and there is no one to tell.
        let _ = std::fs::remove_file(&self.path);
    }
}
