//! Compiles `proto/` with protox, so that nobody needs an installed protoc, and chooses the operating system's ways or the portable ones.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// The one proto of the bridge, relative to `proto/`.
const BRIDGE: &str = "mcprelay/bridge/v1/bridge.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    portable_ways();
    let descriptors = protox::compile([BRIDGE], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("bridge_descriptor.bin"), descriptors.encode_to_vec())?;
    // `bytes` fields as `Bytes`: a request or a chunk is then a view into the received frame, never a copy.
    // The codec looks at what comes in before it becomes many times its size in memory.
    let codec = "crate::bridge::codec::CountedCodec";
    // Maps as trees: the one there is, a trace context, has an entry or two.
    tonic_prost_build::configure().bytes(".").btree_map(".").codec_path(codec).compile_fds(descriptors)?;
    Ok(())
}

/// Where MCPRELAY_PORTABLE is 1, Linux is built with what macOS is built with, so that it is tested without a Mac.
fn portable_ways() {
    println!("cargo:rustc-check-cfg=cfg(mcprelay_portable)");
    println!("cargo:rerun-if-env-changed=MCPRELAY_PORTABLE");
    if env::var("MCPRELAY_PORTABLE").is_ok_and(|value| value == "1") {
        println!("cargo:rustc-cfg=mcprelay_portable");
    }
}
