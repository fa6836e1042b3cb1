//! Checks every seed once, without libFuzzer: a part that has moved on must take its fuzz target along. `./test.sh` runs it.

use std::{fs, path::Path};

use arbitrary::{Arbitrary, Unstructured};
use mcprelay_fuzz::{merge, sessions, sse, task};

/// The fewest seeds that a target has; fewer mean that this looks in the wrong place.
const FEW: usize = 3;

fn main() {
    each("sse", sse::check);
    each("task", task::check);
    each("merge", |bytes| made(bytes).map_or((), merge::check));
    each("sessions", |bytes| made::<Vec<sessions::Step>>(bytes).map_or((), |steps| sessions::check(&steps)));
}

/// What libFuzzer makes of the bytes; none where it would skip them.
fn made<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(bytes)).ok()
}

fn each(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let seeds: Vec<_> = fs::read_dir(&folder).expect("the target has seeds").collect();
    for seed in &seeds {
        let path = seed.as_ref().expect("a seed").path();
        // A panic does not say on which input it came.
        eprintln!("{}", path.display());
        check(&fs::read(&path).expect("a seed"));
    }
    assert!(seeds.len() >= FEW, "{} has {} seeds", folder.display(), seeds.len());
    println!("{target}: {} seeds, nothing found", seeds.len());
}
