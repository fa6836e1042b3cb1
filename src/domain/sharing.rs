//! The owner's rules for when a provider works for others, and the facts that they are about.

use std::time::Duration;

use super::UnixTime;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Most bytes of a window's text: twice what it needs.
const MAX_WINDOW: usize = 40;
const MINUTES_A_DAY: u16 = 24 * 60;
const MINUTES_A_WEEK: u16 = 7 * MINUTES_A_DAY;

/// What is so on the machine at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its clock.
    pub now: UnixTime,
    /// The minute of the week in its time zone, from Monday 00:00.
    pub minute_of_week: u16,
    /// Whether it runs on battery.
    pub on_battery: Fact<bool>,
    /// For how long nobody has used it.
    pub idle_for: Fact<Duration>,
}

/// One fact, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fact<T> {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// Its source cannot be read.
    Unreadable,
    /// It is so.
    Is(T),
}

/// One condition under which a provider works for others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// In one of these windows.
    Hours(Vec<Window>),
    /// Not on battery.
    NotOnBattery,
    /// When nobody has used the machine for this long.
    IdleFor(Duration),
}

impl Rule {
    /// Whether the facts fulfil the rule, or why they do not; `None` while that is not known.
    pub fn judge(&self, facts: &Facts) -> Option<Result<(), &'static str>> {
        let broken = match (self, facts) {
            (Self::Hours(windows), _) if windows.iter().any(|w| w.contains(facts.minute_of_week)) => None,
            (Self::Hours(_), _) => Some("outside its hours"),
            (Self::NotOnBattery, Facts { on_battery, .. }) => match on_battery {
                Fact::Unknown => return None,
                Fact::Unreadable => Some("whether the machine is on battery cannot be told"),
                Fact::Is(on_battery) => on_battery.then_some("on battery"),
            },
            (Self::IdleFor(least), Facts { idle_for, .. }) => match idle_for {
                Fact::Unknown => return None,
                Fact::Unreadable => Some("whether the machine is in use cannot be told"),
                Fact::Is(idle) => (idle < least).then_some("the machine is in use"),
            },
        };
        Some(broken.map_or(Ok(()), Err))
    }
}

/// Hours of some days of the week, as their owner wrote them: "Mon-Fri 18:00-08:00", "Sat-Sun", "22:00-06:00". Hours that end
/// before they begin end on the next day.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window {
    text: String,
    /// The first day, from Monday, and how many.
    days: (u16, u16),
    /// When it begins on each of them, and for how many minutes it lasts.
    hours: (u16, u16),
}

impl Window {
    /// # Errors
    /// If the text is not one: what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || {
            let shown: String = text.chars().take(MAX_WINDOW).collect();
            format!("\"{shown}\" is not understood; write it like \"Mon-Fri 18:00-08:00\" or \"Sat-Sun\"")
        };
        if text.len() > MAX_WINDOW {
            return Err(bad());
        }
        let words: Vec<_> = text.split_whitespace().collect();
        let (days, hours) = match words[..] {
            [days, hours] => (parse_days(days), parse_hours(hours)),
            [word] if word.contains(':') => (Some((0, 7)), parse_hours(word)),
            [word] => (parse_days(word), Some((0, MINUTES_A_DAY))),
            _ => return Err(bad()),
        };
        let (days, hours) = days.zip(hours).ok_or_else(bad)?;
        Ok(Self { text: text.to_owned(), days, hours })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a minute of the week lies in it.
    pub fn contains(&self, minute: u16) -> bool {
        let ((first, count), (from, length)) = (self.days, self.hours);
        (first..first + count).any(|day| {
            let start = day % 7 * MINUTES_A_DAY + from;
            (minute + MINUTES_A_WEEK - start) % MINUTES_A_WEEK < length
        })
    }
}

fn parse_days(text: &str) -> Option<(u16, u16)> {
    let day = |name: &str| DAYS.iter().zip(0..).find(|(d, _)| d.eq_ignore_ascii_case(name)).map(|(_, n)| n);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (day(first)?, day(last)?);
    Some((first, (last + 7 - first) % 7 + 1))
}

fn parse_hours(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once('-')?;
    let (from, to) = (minute_of_day(from)?, minute_of_day(to)?);
    let length = (to + MINUTES_A_DAY - from) % MINUTES_A_DAY;
    (from < MINUTES_A_DAY).then_some((from, if length == 0 { MINUTES_A_DAY } else { length }))
}

/// The minute of a time of day; "24:00" is the end of the day.
pub fn minute_of_day(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
    let (hour, minute) = (number(hour)?, number(minute).filter(|m| *m < 60)?);
    (hour < 24 || (hour, minute) == (24, 0)).then_some(hour * 60 + minute)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(day: &str, time: &str) -> u16 {
        parse_days(day).unwrap().0 * MINUTES_A_DAY + minute_of_day(time).unwrap()
    }

    #[test]
    fn hours_that_end_before_they_begin_end_on_the_next_day_also_over_the_weeks_border() {
        let nights = Window::parse("Mon-Fri 18:00-08:00").unwrap();
        for (day, time, inside) in [
            ("Mon", "07:59", false),
            ("Mon", "18:00", true),
            ("Tue", "07:59", true),
            ("Tue", "08:00", false),
            ("Sat", "07:59", true),
            ("Sat", "18:00", false),
        ] {
            assert_eq!(nights.contains(at(day, time)), inside, "{day} {time}");
        }
        let sunday = Window::parse("sun 22:00-06:00").unwrap();
        assert!(sunday.contains(at("Mon", "05:59")) && !sunday.contains(at("Mon", "06:00")));
        let long_weekend = Window::parse("Fri-Mon").unwrap();
        assert!(long_weekend.contains(at("Mon", "23:59")) && !long_weekend.contains(at("Tue", "00:00")));
        assert!(Window::parse("08:00-08:00").unwrap().contains(at("Wed", "08:00")), "a whole day");
        assert!(!Window::parse("22:00-24:00").unwrap().contains(at("Wed", "00:00")));
    }

    #[test]
    fn what_is_not_a_window_is_refused_with_what_to_write() {
        for text in
            ["", "Mo", "Mon-", "Mon 8-9", "Mon 08:60-09:00", "24:00-08:00", "Mon 08:00-09:00 x", "+1:00-2:00"]
        {
            let why = Window::parse(text).unwrap_err();
            assert!(why.contains("write it like"), "{text}: {why}");
        }
    }

    #[test]
    fn each_rule_says_why_it_is_broken_and_what_cannot_be_read_breaks_it() {
        let facts =
            |on_battery, idle_for| Facts { now: UnixTime(0), minute_of_week: 0, on_battery, idle_for };
        let known = facts(Fact::Is(true), Fact::Is(Duration::from_secs(599)));
        let idle = Rule::IdleFor(Duration::from_secs(600));
        assert_eq!(Rule::NotOnBattery.judge(&known), Some(Err("on battery")));
        assert_eq!(idle.judge(&known), Some(Err("the machine is in use")));
        assert_eq!(idle.judge(&facts(Fact::Unknown, Fact::Is(Duration::from_secs(600)))), Some(Ok(())));
        assert!(matches!(Rule::NotOnBattery.judge(&facts(Fact::Unreadable, Fact::Unknown)), Some(Err(_))));
        assert_eq!(Rule::NotOnBattery.judge(&facts(Fact::Unknown, Fact::Unknown)), None);
        assert_eq!(Rule::Hours(vec![]).judge(&known), Some(Err("outside its hours")));
    }

    proptest! {
        /// Against a week that is painted minute by minute.
        #[test]
        fn a_window_is_the_minutes_that_its_days_paint(first in 0u16..7, last in 0u16..7, from in 0u16..1440, to in 0u16..=1440) {
            let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
            let (a, b) = (DAYS[usize::from(first)], DAYS[usize::from(last)]);
            let window = Window::parse(&format!("{a}-{b} {}-{}", time(from), time(to))).unwrap();
            let mut painted = vec![false; usize::from(MINUTES_A_WEEK)];
            let mut day = first;
            loop {
                let start = day * MINUTES_A_DAY + from;
                let end = day * MINUTES_A_DAY + if to <= from { to + MINUTES_A_DAY } else { to };
                (start..end).for_each(|minute| painted[usize::from(minute % MINUTES_A_WEEK)] = true);
                if day == last { break }
                day = (day + 1) % 7;
            }
            for minute in 0..MINUTES_A_WEEK {
                prop_assert_eq!(window.contains(minute), painted[usize::from(minute)], "{}", minute);
            }
        }
    }
}
