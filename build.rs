//! Compiles `proto/` with protox, so that nobody needs an installed protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// The one proto of the bridge, relative to `proto/`.
const BRIDGE: &str = "mcprelay/bridge/v1/bridge.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
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
