#![doc = "See [`mcprelay_fuzz::sessions`]."]
#![no_main]

libfuzzer_sys::fuzz_target!(|steps: Vec<mcprelay_fuzz::sessions::Step>| mcprelay_fuzz::sessions::check(
    &steps
));
