//! Whatever sessions, mcpd and the clock do, and in whatever order: every task has one end and every slot one holder.
//!
//! A step is one event; [`World`] plays the agent around the core, and [`Ledger`] records what the effects have promised so far.

mod ledger;
mod step;
mod world;

pub use step::Step;

use world::World;

/// Takes the steps one after the other, then ends everything: nothing may be left.
pub fn check(steps: &[Step]) {
    let mut world = World::new();
    steps.iter().for_each(|step| world.take(step));
    world.end();
}
