//! What is so on the machine, for the owner's rules: its clock, its battery, and whether somebody uses it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Datelike as _, Local, TimeZone, Timelike as _};
use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};

use super::spawner::Spawner;
use crate::{
    domain::{Fact, Facts, Rule, UnixTime},
    platform,
};

/// How often the battery and the use of the machine are looked at while a rule is about them.
const LOOK: Duration = Duration::from_secs(10);

/// Says what is so now.
pub type TellFacts = Arc<dyn Fn() -> Facts + Send + Sync>;

/// Where the agent learns what is so on the machine.
#[derive(Clone, Default)]
pub enum FactSource {
    /// The machine tells.
    #[default]
    Machine,
    /// A function tells, so that tests can have a battery.
    Told(TellFacts),
}

/// What some rules are about, besides the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    battery: bool,
    idle: bool,
}

/// What was found when it was last looked.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    on_battery: Fact<bool>,
    idle_for: Fact<Duration>,
}

/// The facts, looked up beside the loop as far as rules are about them.
pub(super) struct FactWatch {
    source: FactSource,
    wanted: watch::Sender<Wanted>,
    found: watch::Receiver<Found>,
}

impl FactWatch {
    pub(super) fn new(source: FactSource, spawner: &Spawner) -> Self {
        let (wanted, is_wanted) = watch::channel(Wanted::default());
        let (tell, found) = watch::channel(Found::default());
        if matches!(source, FactSource::Machine) {
            spawner.spawn(look(is_wanted, tell));
        }
        Self { source, wanted, found }
    }

    /// The machine's clock.
    pub(super) fn clock(&self) -> UnixTime {
        match &self.source {
            FactSource::Machine => SystemTime::now().into(),
            FactSource::Told(tell) => tell().now,
        }
    }

    /// What is so now. What these rules are about is looked up from now on.
    pub(super) fn now<'a>(&self, rules: impl Iterator<Item = &'a Rule>) -> Facts {
        if let FactSource::Told(tell) = &self.source {
            return tell();
        }
        let wanted = rules.fold(Wanted::default(), |wanted, rule| match rule {
            Rule::Hours(_) => wanted,
            Rule::NotOnBattery => Wanted { battery: true, ..wanted },
            Rule::IdleFor(_) => Wanted { idle: true, ..wanted },
        });
        self.wanted.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
        let (found, now) = (*self.found.borrow(), SystemTime::now());
        Facts {
            now: now.into(),
            minute_of_week: minute_of_week(&DateTime::<Local>::from(now)),
            on_battery: found.on_battery,
            idle_for: found.idle_for,
        }
    }
}

/// The minute of the week, from Monday 00:00, as a clock on the wall shows it.
fn minute_of_week<Z: TimeZone>(at: &DateTime<Z>) -> u16 {
    let minute = (at.weekday().num_days_from_monday() * 24 + at.hour()) * 60 + at.minute();
    u16::try_from(minute).unwrap_or_default()
}

async fn look(mut wanted: watch::Receiver<Wanted>, tell: watch::Sender<Found>) {
    let mut warned = Wanted::default();
    loop {
        let Wanted { battery, idle } = *wanted.borrow_and_update();
        let mut found = Found::default();
        if battery {
            found.on_battery = fact(platform::on_battery().await, "is on battery", &mut warned.battery);
        }
        if idle {
            found.idle_for = fact(platform::idle_for().await, "is in use", &mut warned.idle);
        }
        tell.send_replace(found);
        let change = wanted.changed();
        let gone = match battery || idle {
            true => matches!(timeout(LOOK, change).await, Ok(Err(_))),
            false => change.await.is_err(),
        };
        if gone {
            return;
        }
    }
}

/// A fact that was looked up. What cannot be read is warned of once, until it can be read again.
fn fact<T>(read: Result<T, String>, what: &str, warned: &mut bool) -> Fact<T> {
    match read {
        Ok(value) => {
            if std::mem::take(warned) {
                info!("whether the machine {what} can be told again");
            }
            Fact::Is(value)
        }
        Err(why) => {
            if !std::mem::replace(warned, true) {
                warn!(
                    "whether the machine {what} cannot be told: {why}; what is shared under a rule about it stays paused"
                );
            }
            Fact::Unreadable
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use chrono_tz::{Asia::Kathmandu, Europe::Berlin, Tz};
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Window;

    fn at<Z: TimeZone>(zone: Z, rfc3339: &str) -> u16 {
        minute_of_week(&DateTime::parse_from_rfc3339(rfc3339).unwrap().with_timezone(&zone))
    }

    #[test]
    fn the_minute_of_the_week_is_that_of_the_clock_on_the_wall() {
        assert_eq!(at(Utc, "2026-11-30T00:00:59Z"), 0, "a Monday");
        assert_eq!(at(Kathmandu, "2026-11-29T18:15:00Z"), 0, "5:45 h ahead");
        assert_eq!(at(Berlin, "2026-11-29T22:59:00Z"), 7 * 24 * 60 - 1, "over the week's border");
    }

    #[test]
    fn hours_follow_the_clock_when_it_is_put_forward_and_back() {
        let night = Window::parse("22:00-08:00").unwrap();
        for (time, inside) in [
            // 07:59 and 08:00 on the wall, on the mornings of both changes.
            ("2026-03-29T05:59:00Z", true),
            ("2026-03-29T06:00:00Z", false),
            ("2026-10-25T06:59:00Z", true),
            ("2026-10-25T07:00:00Z", false),
        ] {
            assert_eq!(night.contains(at(Berlin, time)), inside, "{time}");
        }
    }

    proptest! {
        /// In every zone the clock on the wall moves on by a minute a minute, except where it is put forward or back.
        #[test]
        fn the_clock_moves_on_by_a_minute_a_minute(zone in proptest::sample::select(&chrono_tz::TZ_VARIANTS[..]), at in 0i64..2_000_000_000) {
            let wall = |seconds| Utc.timestamp_opt(seconds, 0).unwrap().with_timezone::<Tz>(&zone);
            let (before, after) = (wall(at), wall(at + 60));
            let moved = (minute_of_week(&after) + 10_080 - minute_of_week(&before)) % 10_080;
            prop_assert!(moved == 1 || after.offset().to_string() != before.offset().to_string(), "{before} {after}");
            prop_assert!(minute_of_week(&before) < 10_080);
        }
    }
}
