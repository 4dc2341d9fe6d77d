//! Where COPY writes. A folder or file on this machine's file system is written beside its name and renamed when it is
//! complete. In an object store, which can't rename, a folder is complete when it holds `_SUCCESS`.

use crate::End;
use bytes::Bytes;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::{DataFusionError, Result};
use datafusion::parquet::arrow::async_reader::MetadataFetch;
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::ParquetMetaDataReader;
use datafusion::prelude::SessionContext;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as StorePath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What marks a folder in an object store as complete, as it does for Hadoop and Spark.
const SUCCESS: &str = "_SUCCESS";

/// What is being written on this machine's file system.
static PARTIAL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes what was not finished. For the end of the process, when no thread can write any more: one that is in the middle
/// of a batch when a query fails makes its file again.
pub fn sweep() {
    for partial in PARTIAL.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = fs::remove_dir_all(&partial).or_else(|_| fs::remove_file(&partial));
    }
}

pub struct Destination {
    store: Arc<dyn ObjectStore>,
    /// What DataFusion is to write to.
    url: ListingTableUrl,
    target: String,
    /// On a file system: where it is written, and the name that it gets.
    rename: Option<(PathBuf, PathBuf)>,
}

impl Destination {
    /// For what COPY was told to write: a folder that is new or empty, or a file.
    pub async fn new(context: &SessionContext, target: &str) -> Result<Self, End> {
        let usage = |e: String| End::BadUsage(format!("COPY TO '{target}': {e}"));
        let at_store = target.split_once("://").filter(|(scheme, _)| *scheme != "file");
        if at_store.is_some() {
            let url = ListingTableUrl::parse(target)?;
            let store = context.runtime_env().object_store(&url)?;
            let destination = Self { store, url, target: target.to_string(), rename: None };
            if destination.is_folder() && !destination.objects().await?.is_empty() {
                return Err(usage("there are objects already; expected a new or empty folder".to_string()));
            }
            return Ok(destination);
        }
        let plain = target.strip_prefix("file://").unwrap_or(target);
        let path = std::path::absolute(plain).map_err(|e| usage(e.to_string()))?;
        let folder = plain.ends_with('/') || path.extension().is_none();
        if folder && fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(usage("there is something in it already; expected a new or empty folder".to_string()));
        }
        let Some((parent, name)) = path.parent().zip(path.file_name().and_then(|name| name.to_str())) else {
            return Err(usage("expected a folder's or file's name".to_string()));
        };
        fs::create_dir_all(parent).map_err(|e| usage(e.to_string()))?;
        let beside = format!(".{}.{name}", tempfile_name());
        let partial = parent.join(beside);
        let target = partial.to_str().ok_or_else(|| usage("the path is not UTF-8".to_string()))?;
        let target = if folder { format!("{target}/") } else { target.to_string() };
        let url = ListingTableUrl::parse(&target)?;
        let store = context.runtime_env().object_store(&url)?;
        PARTIAL.lock().unwrap_or_else(PoisonError::into_inner).push(partial.clone());
        Ok(Self { store, url, target, rename: Some((partial, path)) })
    }

    pub fn target(&self) -> String {
        self.target.clone()
    }

    fn is_folder(&self) -> bool {
        self.target.ends_with('/') || Path::new(&self.target).extension().is_none()
    }

    async fn objects(&self) -> Result<Vec<ObjectMeta>> {
        let objects = self.store.list(Some(self.url.prefix()));
        objects.try_collect().await.map_err(|e| DataFusionError::ObjectStore(Box::new(e)))
    }

    /// Checks that what was written has so many rows, and gives it its name.
    pub async fn finish(&self, count: u64) -> Result<(), End> {
        if self.is_folder() {
            self.keep_one_writing(count).await?;
        }
        let Some((partial, path)) = &self.rename else {
            if self.is_folder() {
                let done = self.url.prefix().clone().join(SUCCESS);
                let put = self.store.put(&done, PutPayload::default()).await;
                put.map_err(|e| DataFusionError::ObjectStore(Box::new(e)))?;
            }
            return Ok(());
        };
        let failed = |e: std::io::Error| End::Failed(format!("{}: {e}", path.display()));
        // No rows, no files.
        if self.is_folder() {
            fs::create_dir_all(partial).map_err(failed)?;
            if let Err(e) = fs::remove_dir(path)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                return Err(failed(e));
            }
        }
        fs::rename(partial, path).map_err(failed)
    }

    /// A writer whose executor died was started again elsewhere, and may have left whole files: all files of one writing
    /// have a name in common, and only those of the one that ended have all rows.
    async fn keep_one_writing(&self, count: u64) -> Result<(), End> {
        let mut writings: BTreeMap<String, (u64, Vec<StorePath>)> = BTreeMap::new();
        let mut counted = true;
        for object in self.objects().await? {
            let Some((writing, kind)) = written(&object.location) else {
                let stray = &object.location;
                return Err(End::Failed(format!("{stray} came into {} meanwhile, from someone else", self.target)));
            };
            if kind != "parquet" {
                counted = false; // other formats don't say how many rows they have
                continue;
            }
            let footer = Footer(self.store.as_ref(), &object.location);
            let metadata = ParquetMetaDataReader::new().load_and_finish(footer, object.size).await;
            let metadata = metadata.map_err(DataFusionError::from)?;
            let (rows, files) = writings.entry(writing).or_default();
            *rows += metadata.file_metadata().num_rows() as u64;
            files.push(object.location);
        }
        if !counted {
            return Ok(());
        }
        let Some(whole) = writings.iter().find(|(_, (rows, _))| *rows == count).map(|(name, _)| name.clone()) else {
            let given: Vec<String> = writings.values().map(|(rows, _)| rows.to_string()).collect();
            return if count == 0 && writings.is_empty() {
                Ok(())
            } else {
                Err(End::Failed(format!("{count} rows were to be written; there are {}", given.join(" and "))))
            };
        };
        for (writing, (_, files)) in writings {
            if writing != whole {
                self.delete(files).await;
            }
        }
        Ok(())
    }

    /// Leaves nothing behind.
    pub async fn abandon(&self) {
        match &self.rename {
            Some((partial, _)) => {
                let _ = fs::remove_dir_all(partial).or_else(|_| fs::remove_file(partial));
            }
            None => {
                let objects = self.objects().await.unwrap_or_default();
                let locations = objects.into_iter().map(|object| object.location);
                self.delete(locations.filter(|location| written(location).is_some()).collect()).await;
            }
        }
    }

    async fn delete(&self, files: Vec<StorePath>) {
        let files = futures::stream::iter(files.into_iter().map(Ok)).boxed();
        let _ = self.store.delete_stream(files).try_collect::<Vec<_>>().await;
    }
}

/// What all files of one writing have in common in their names, and this file's ending, if DataFusion named it: 16
/// letters and digits for the writing, and `_` and a number for the file where there are several.
fn written(location: &StorePath) -> Option<(String, String)> {
    let (stem, kind) = location.filename()?.split_once('.')?;
    let (writing, number) = stem.split_once('_').unwrap_or((stem, "0"));
    let ours = writing.len() == 16
        && writing.bytes().all(|b| b.is_ascii_alphanumeric())
        && number.bytes().all(|b| b.is_ascii_digit());
    ours.then(|| (writing.to_string(), kind.to_string()))
}

/// What a Parquet file says of itself.
struct Footer<'a>(&'a dyn ObjectStore, &'a StorePath);

impl MetadataFetch for Footer<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        let Footer(store, path) = *self;
        Box::pin(async move { store.get_range(path, range).await.map_err(|e| ParquetError::External(Box::new(e))) })
    }
}

/// A name that no other run takes.
fn tempfile_name() -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("partial-{}-{time}", std::process::id())
}
