//! What crosses the bridge: FBGEMM's own enums and structs, as bindgen read them from the provider's headers, and its
//! exceptions.

use crate::error::Error;

#[allow(non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code, missing_docs)]
mod read {
    include!(concat!(env!("OUT_DIR"), "/types.rs"));
}

pub(super) use read::root::fbgemm::{BlockingFactors, TensorQuantizationParams, inst_set_t};

// SAFETY: bindgen read the layout from the header that the C++ half is compiled with; it is a plain number, which a
// move copies.
unsafe impl cxx::ExternType for inst_set_t {
    type Id = cxx::type_id!("fbgemm::inst_set_t");
    type Kind = cxx::kind::Trivial;
}
// SAFETY: as for `inst_set_t`, a struct of plain numbers.
unsafe impl cxx::ExternType for BlockingFactors {
    type Id = cxx::type_id!("fbgemm::BlockingFactors");
    type Kind = cxx::kind::Trivial;
}
// SAFETY: as for `BlockingFactors`.
unsafe impl cxx::ExternType for TensorQuantizationParams {
    type Id = cxx::type_id!("fbgemm::TensorQuantizationParams");
    type Kind = cxx::kind::Trivial;
}

/// An exception that the bridge caught, as an error.
pub(super) fn failed(operation: &'static str) -> impl Fn(cxx::Exception) -> Error {
    move |e| Error::Fbgemm { operation, message: e.what().to_string() }
}
