//! The agent's own work per task and per token, timed.

use criterion::Criterion;
use mcprelay_bench::hot::{Bench, Path};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut bench = Bench::new();
    for (name, path) in Path::ALL {
        criterion.bench_function(name, |bencher| bencher.iter(|| bench.once(path)));
    }
    criterion.final_summary();
}
