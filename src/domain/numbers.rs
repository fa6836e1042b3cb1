//! Hash tables whose keys are numbers that no outsider chooses.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

/// A map whose key is a counter, or a hash that is already keyed: nobody can choose such numbers so that they collide, so they need no
/// collision-resistant hash.
pub type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;
/// A set of such numbers.
pub type NumberSet = HashSet<u64, BuildHasherDefault<NumberHasher>>;

/// An odd number whose bits look random, 2^64 divided by the golden ratio: it spreads a counter over the upper bits too, which hash
/// tables use.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes one number.
#[derive(Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(SPREAD);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
