#![doc = "See [`mcprelay_fuzz::task`]."]
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mcprelay_fuzz::task::check(data));
