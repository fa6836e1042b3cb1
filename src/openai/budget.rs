//! The memory that the waiting output of all tasks together may take.
//!
//! Counting costs one comparison per token: a task's share grows in steps, and only a step touches the counter that all tasks share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::ChunkError;

/// What a task may hold without being counted, in bytes: the 16 KiB that any task may cost, so that streams in full flow are never counted.
const UNCOUNTED: usize = 16 << 10;
/// By how much a share grows and shrinks, in bytes: a thousand tokens, and small compared with the 4 MiB of one task.
const STEP: usize = 64 << 10;

/// A bound on the bytes that all its [`Reservation`]s hold together. Clones are the same room.
#[derive(Clone, Debug)]
pub struct MemoryBudget {
    limit: usize,
    taken: Arc<AtomicUsize>,
}

impl MemoryBudget {
    /// A room for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, taken: Arc::default() }
    }

    /// A share of it that holds nothing yet.
    pub fn reservation(&self) -> Reservation {
        Reservation { room: self.clone(), counted: 0 }
    }

    /// How many bytes its shares have taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// What one holder takes of a [`MemoryBudget`]; returned when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    room: MemoryBudget,
    counted: usize,
}

impl Reservation {
    /// Makes this a share of `held` bytes, unless that is more than the room has left.
    ///
    /// # Errors
    /// If there is no more room; the share stays as it was.
    pub fn reserve(&mut self, held: usize) -> Result<(), ChunkError> {
        let wanted = counted(held);
        if wanted > self.counted && self.room.taken() + (wanted - self.counted) > self.room.limit {
            return Err(ChunkError::NoRoom { limit: self.room.limit });
        }
        self.set(wanted);
        Ok(())
    }

    /// Makes this a share of `held` bytes that are held already, whether there is room or not.
    pub fn hold(&mut self, held: usize) {
        self.set(counted(held));
    }

    fn set(&mut self, counted: usize) {
        if counted > self.counted {
            self.room.taken.fetch_add(counted - self.counted, Ordering::Relaxed);
        } else if counted < self.counted {
            self.room.taken.fetch_sub(self.counted - counted, Ordering::Relaxed);
        }
        self.counted = counted;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn counted(held: usize) -> usize {
    if held <= UNCOUNTED { 0 } else { held.next_multiple_of(STEP) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_share_gives_back_another_can_have() {
        let room = MemoryBudget::new(4 * STEP);
        let (mut one, mut other) = (room.reservation(), room.reservation());
        one.reserve(3 * STEP).expect("there is room");
        assert_eq!(other.reserve(2 * STEP), Err(ChunkError::NoRoom { limit: 4 * STEP }));
        assert_eq!(room.taken(), 3 * STEP, "what was refused is not counted");
        one.reserve(2 * STEP).expect("it is less");
        other.reserve(2 * STEP).expect("there is room again");
        drop((one, other));
        assert_eq!(room.taken(), 0);
    }

    #[test]
    fn what_a_task_holds_anyway_is_not_counted() {
        let room = MemoryBudget::new(0);
        let mut share = room.reservation();
        share.reserve(UNCOUNTED).expect("it is not counted");
        assert!(share.reserve(UNCOUNTED + 1).is_err());
    }

    #[test]
    fn what_is_here_already_is_counted_beyond_the_limit() {
        let room = MemoryBudget::new(STEP);
        let mut share = room.reservation();
        share.hold(3 * STEP);
        assert_eq!(room.taken(), 3 * STEP);
        assert!(room.reservation().reserve(STEP).is_err());
        share.reserve(2 * STEP).expect("to hold less is never refused");
    }
}
