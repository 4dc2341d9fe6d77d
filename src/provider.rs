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
    });
    #[cfg(not(fbgemm_linked))]
    None
}
