#![doc = "See [`mcprelay_fuzz::sse`]."]
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mcprelay_fuzz::sse::check(data));
