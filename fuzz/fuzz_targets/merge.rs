#![doc = "See [`mcprelay_fuzz::merge`]."]
#![no_main]

libfuzzer_sys::fuzz_target!(|script: mcprelay_fuzz::merge::Script| mcprelay_fuzz::merge::check(script));
