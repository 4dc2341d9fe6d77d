//! `fbgemm info`: which FBGEMM this is, and what it uses on this CPU.

use crate::Exit;
use crate::stdio::say;
use fbgemm::Isa;
use fbgemm_testkit::process::{LIMIT, lesser};
use serde_json::json;
use std::io::Result;

/// Prints it; the exit says whether the CPU is supported.
pub fn run(as_json: bool) -> Result<Exit> {
    let support = fbgemm::cpu_support();
    let provider = fbgemm::provider();
    let limit = std::env::var_os(LIMIT).map(|value| value.to_string_lossy().into_owned());
    let uses = support.as_ref().ok().copied();
    let ignored = limit.as_deref().and_then(|value| why_ignored(value, uses));
    if as_json {
        say!(
            "{}",
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "provider": provider.as_ref().map(|p| p.name),
                "fbgemm_version": provider.as_ref().map(|p| p.version),
                "root": provider.as_ref().map(|p| p.root),
                "library": provider.as_ref().map(|p| p.library.clone()),
                "instead_of": provider.as_ref().and_then(|p| p.instead_of.clone()),
                "cpu": cpu_name(),
                "cpu_features": cpu_features(),
                "isa": uses.map(Isa::variable),
                "sums_pairs_exactly": uses.map(Isa::sums_pairs_exactly),
                "limited_to": limit.filter(|_| ignored.is_none()),
                "limit_ignored": ignored,
                "error": support.as_ref().err().map(|e| e.to_string()),
            })
        )?;
    } else {
        let line = |name: &str, value: &str| say!("{name:<16} {value}");
        line("fbgemm crate", env!("CARGO_PKG_VERSION"))?;
        match &provider {
            Some(p) => {
                let unknown = "unknown: its headers are no release's from 1.2.0 to 1.8.0";
                line("FBGEMM", if p.version == "unknown" { unknown } else { p.version })?;
                line("provider", &format!("{} ({})", p.name, p.root))?;
                line("library", &p.library)?;
                if let Some(meant) = &p.instead_of {
                    let why = "this process holds two FBGEMMs, and the loader took the first";
                    line("instead of", &format!("{meant} ({why})"))?;
                }
            }
            None => line("FBGEMM", "none in this build")?,
        }
        line("bits", "as PyTorch's? `fbgemm verify --self` tells in a second")?;
        line("CPU", &cpu_name())?;
        line("it has", &cpu_features().join(", "))?;
        match &support {
            Ok(isa) => {
                let sums = if isa.sums_pairs_exactly() { "exact" } else { "clamped to 16 bits, as PyTorch's here" };
                line("FBGEMM uses", &format!("{isa} (sums of two products: {sums})"))?;
            }
            Err(_) => line("FBGEMM uses", "nothing: see the error")?,
        }
        match (&limit, ignored) {
            (_, Some(why)) => line("not limited", &why)?,
            (Some(limit), None) => line("limited by", &format!("{LIMIT}={limit}"))?,
            (None, None) => {}
        }
    }
    match support {
        Ok(_) => Ok(Exit::Done),
        Err(e) => Ok(Exit::refused(&e)),
    }
}

/// Why FBGEMM, which says nothing of that, does not honour this value of the variable that limits it.
fn why_ignored(value: &str, uses: Option<Isa>) -> Option<String> {
    let best = Isa::Avx512Vnni;
    let known: Vec<Isa> = lesser(best).iter().copied().chain([best]).collect();
    // It takes both cases of letters.
    match known.iter().find(|isa| isa.variable().eq_ignore_ascii_case(value)) {
        None => {
            let names: Vec<_> = known.iter().map(|isa| isa.variable()).collect();
            Some(format!("{LIMIT} is {value:?}, which FBGEMM ignores: it knows {}", names.join(", ")))
        }
        Some(named) if uses.is_some_and(|uses| uses != *named) => {
            Some(format!("{LIMIT} is {value:?}, which FBGEMM ignores: it can't use {named} on this CPU"))
        }
        Some(_) => None,
    }
}

/// The CPU's own name, as the kernel tells it.
pub fn cpu_name() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.to_string())
}

/// What it has of the features that FBGEMM chooses by.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX512F", is_x86_feature_detected!("avx512f")),
        ("AVX512BW", is_x86_feature_detected!("avx512bw")),
        ("AVX512DQ", is_x86_feature_detected!("avx512dq")),
        ("AVX512VL", is_x86_feature_detected!("avx512vl")),
        ("AVX512VNNI", is_x86_feature_detected!("avx512vnni")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let features: [(&'static str, bool); 0] = [];
    features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect()
}
