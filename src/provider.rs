//! Which FBGEMM this build has.

/// Where this build's FBGEMM comes from.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// `prefix`, `libtorch` or `pinned`.
    pub name: &'static str,
    /// FBGEMM's version; `unknown` where its headers are not those of a version that this crate has seen.
    pub version: &'static str,
    /// The folder that it was built against.
    pub root: &'static str,
    /// The file that FBGEMM's code was loaded from: the program itself where it is linked statically.
    pub library: String,
    /// The file that it was to come from, where [`library`](Self::library) is another: two libraries with FBGEMM are in
    /// this process, and the loader took the first that it saw. The numbers are then that library's.
    pub instead_of: Option<String>,
}

/// This build's FBGEMM, or `None` where it was built without.
///
/// ```
/// let provider = fbgemm::provider().expect("this build has FBGEMM");
/// assert!(["prefix", "libtorch", "pinned"].contains(&provider.name));
/// ```
pub fn provider() -> Option<Provider> {
    #[cfg(fbgemm_linked)]
    return Some(Provider {
        name: env!("FBGEMM_RS_PROVIDER"),
        version: env!("FBGEMM_RS_VERSION"),
        root: env!("FBGEMM_RS_PROVIDER_ROOT"),
        library: crate::ffi::library::library_path().unwrap_or_default(),
        instead_of: instead_of(),
    });
    #[cfg(not(fbgemm_linked))]
    None
}

/// See [`Provider::instead_of`]. A library may lie elsewhere than when the program was built, so names are compared.
#[cfg(fbgemm_linked)]
fn instead_of() -> Option<String> {
    use crate::ffi::library::{library_path, own_path};
    let meant = match env!("FBGEMM_RS_LIBRARY") {
        "" => own_path().ok()?,
        file => file.to_string(),
    };
    let found = library_path().ok()?;
    (name_of(&found) != name_of(&meant)).then_some(meant)
}

/// `libfbgemm` of `/usr/lib/libfbgemm.so.1`.
#[cfg(fbgemm_linked)]
fn name_of(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split(".so").next().unwrap_or_default()
}
