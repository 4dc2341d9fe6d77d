//! Models by name, path and content, and those that this process has loaded.

use crate::error::{Error, Result};
use crate::hash::{ContentHash, Stamp};
use fbgemm::{Embedding, Int8Scheme, Linear, ModelFile};
use fbgemm_encoder::{Encoder, EncoderOptions, model_folder};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// A model as a plan names it: its name in queries, where it lies on every machine, and the hash of its content.
///
/// ```no_run
/// use fbgemm_datafusion::Model;
///
/// let model = Model::open("minilm", "/models/all-MiniLM-L6-v2")?.max_tokens(64);
/// println!("{} {}", model.path().display(), model.hash());
/// # Ok::<(), fbgemm_datafusion::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Model {
    name: String,
    path: PathBuf,
    hash: ContentHash,
    pub(crate) portable: bool,
    pub(crate) max_tokens: Option<usize>,
}

impl Model {
    /// The model in this folder or file: one that [`Encoder::open`] takes, for texts; one that [`ModelFile::open`] takes,
    /// for layers and tables. Reads all of it once, for its hash; it is loaded where and when a query needs it.
    ///
    /// The path is made absolute, since other processes are to find it there. Of a folder of a Hugging Face cache it is
    /// the snapshot's.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::NoModel`]; [`Error::Encoder`] of a Hugging Face cache with several snapshots.
    pub fn open(name: impl Into<String>, path: impl AsRef<Path>) -> Result<Self> {
        let name = name.into();
        let at = |path: &Path| {
            let path = path.to_path_buf();
            let model = name.clone();
            move |source| Error::File { model, path, source }
        };
        let path = std::path::absolute(path.as_ref()).map_err(at(path.as_ref()))?;
        let path = model_folder(path).map_err(|source| Error::Encoder { model: name.clone(), source })?;
        match ContentHash::of(&path).map_err(at(&path))? {
            Some(hash) => Ok(Self { name, path, hash, portable: false, max_tokens: None }),
            None => Err(Error::NoModel { model: name, path }),
        }
    }

    /// As a plan names it; its files may not be on this machine.
    #[cfg(feature = "codec")]
    pub(crate) fn planned(name: String, path: PathBuf, hash: ContentHash) -> Self {
        Self { name, path, hash, portable: false, max_tokens: None }
    }

    /// Layers that the file has in floats are quantized by [`Int8Scheme::portable`], instead of
    /// [`Int8Scheme::accurate`]: the same bits on every kind of CPU, which matters where machines differ.
    pub fn portable(self) -> Self {
        Self { portable: true, ..self }
    }

    /// Cuts texts behind so many tokens: see [`EncoderOptions::max_tokens`].
    pub fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens: Some(max_tokens), ..self }
    }

    /// What queries call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it lies, on every machine.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn hash(&self) -> &ContentHash {
        &self.hash
    }

    /// The encoder, which every thread of this process shares.
    pub(crate) fn encoder(&self) -> Result<Arc<Encoder>> {
        ENCODERS.get((self.key(), ()), || {
            let scheme = if self.portable { Int8Scheme::portable() } else { Int8Scheme::accurate() };
            let options = EncoderOptions::new().scheme(scheme);
            let options = self.max_tokens.into_iter().fold(options, EncoderOptions::max_tokens);
            let load = || Encoder::open(&self.path, &options).map_err(|e| self.encoder_error(e));
            let encoder = self.checked(load)?;
            if encoder.is_batch_independent() {
                Ok(encoder)
            } else {
                Err(Error::BatchDependent { model: self.name.clone() })
            }
        })
    }

    /// One linear layer.
    pub(crate) fn linear(&self, layer: &str) -> Result<Arc<Linear>> {
        LINEARS.get((self.key(), layer.to_string()), || {
            self.checked(|| self.file()?.linear(layer).map_err(|e| self.error(e)))
        })
    }

    /// One table of embeddings.
    pub(crate) fn table(&self, table: &str) -> Result<Arc<Embedding>> {
        TABLES.get((self.key(), table.to_string()), || {
            self.checked(|| self.file()?.embedding(table).map_err(|e| self.error(e)))
        })
    }

    fn file(&self) -> Result<ModelFile<'static>> {
        ModelFile::open(&self.path).map_err(|e| self.error(e))
    }

    /// What `load` gives, if the files are those of the hash, before and after.
    fn checked<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<T> {
        let at = |source| Error::File { model: self.name.clone(), path: self.path.clone(), source };
        let before = Stamp::of(&self.path).map_err(at)?;
        match ContentHash::of(&self.path).map_err(at)? {
            Some(given) if given == self.hash => {}
            Some(given) => {
                let (model, path, expected) = (self.name.clone(), self.path.clone(), self.hash.clone());
                return Err(Error::WrongContent { model, path, given, expected });
            }
            None => return Err(Error::NoModel { model: self.name.clone(), path: self.path.clone() }),
        }
        let loaded = load()?;
        if Stamp::of(&self.path).map_err(at)? == before {
            Ok(loaded)
        } else {
            Err(Error::Changed { model: self.name.clone(), path: self.path.clone() })
        }
    }

    pub(crate) fn error(&self, source: fbgemm::Error) -> Error {
        Error::Fbgemm { model: self.name.clone(), source }
    }

    pub(crate) fn layer_error(&self, layer: &str, source: fbgemm::Error) -> Error {
        self.error(fbgemm::Error::InLayer { name: layer.to_string(), source: Box::new(source) })
    }

    pub(crate) fn encoder_error(&self, source: fbgemm_encoder::Error) -> Error {
        Error::Encoder { model: self.name.clone(), source }
    }

    fn key(&self) -> Key {
        Key { path: self.path.clone(), hash: self.hash.clone(), portable: self.portable, max_tokens: self.max_tokens }
    }
}

/// What decides an answer; the name does not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    path: PathBuf,
    hash: ContentHash,
    portable: bool,
    max_tokens: Option<usize>,
}

/// What this process has loaded, once each. A load that failed is tried again.
struct Loaded<P, T>(LazyLock<Slots<P, T>>);

type Slots<P, T> = Mutex<HashMap<(Key, P), Slot<T>>>;

/// One that is loaded, or being loaded by the thread that has the lock.
type Slot<T> = Arc<Mutex<Option<Arc<T>>>>;

static ENCODERS: Loaded<(), Encoder> = Loaded(LazyLock::new(Mutex::default));
static LINEARS: Loaded<String, Linear> = Loaded(LazyLock::new(Mutex::default));
static TABLES: Loaded<String, Embedding> = Loaded(LazyLock::new(Mutex::default));

impl<P: std::hash::Hash + Eq, T> Loaded<P, T> {
    fn get(&self, key: (Key, P), load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        // A thread that panicked left nothing half made: a slot is filled in one step.
        let slot = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(loaded) => Ok(Arc::clone(loaded)),
            None => Ok(Arc::clone(slot.insert(Arc::new(load()?)))),
        }
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Forgets all models that this process has loaded: the next query that needs one loads it again. Queries that run keep
/// theirs until they end.
pub fn release_models() {
    ENCODERS.clear();
    LINEARS.clear();
    TABLES.clear();
}
