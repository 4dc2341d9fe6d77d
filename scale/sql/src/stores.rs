//! Where files are: on this machine, or in S3's buckets, which are opened when a query first names them.

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use std::sync::{Arc, Mutex, PoisonError};
use url::Url;

/// DataFusion's registry, to which an `s3://` bucket is added when it is first asked for.
#[derive(Debug, Default)]
struct Stores {
    known: DefaultObjectStoreRegistry,
    opening: Mutex<()>,
}

impl ObjectStoreRegistry for Stores {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.known.register_store(url, store)
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        self.known.deregister_store(url)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.known.get_store(url), url.host_str()) {
            (Err(_), Some(bucket)) if url.scheme() == "s3" => {
                // AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP and the others that it knows.
                let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build();
                let store: Arc<dyn ObjectStore> =
                    Arc::new(store.map_err(|e| DataFusionError::ObjectStore(Box::new(e)))?);
                self.known.register_store(url, Arc::clone(&store));
                Ok(store)
            }
            (found, _) => found,
        }
    }
}

/// What DataFusion runs in, with these stores; `spill` is where it may write for itself.
pub fn environment(spill: Option<&std::path::Path>) -> Result<Arc<RuntimeEnv>> {
    let builder = RuntimeEnvBuilder::new().with_object_store_registry(Arc::new(Stores::default()));
    spill.into_iter().fold(builder, RuntimeEnvBuilder::with_temp_file_path).build_arc()
}
