//! `mcprelay pause` and `mcprelay resume`: the owner needs the GPU, or gives it back.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Days, Local, NaiveTime, TimeDelta, TimeZone};
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::{Stop, completions, output, socket};
use crate::{
    config::{self, HomeArgs, Lookup},
    domain::{Printable, minute_of_day},
    pb::SetPausedRequest,
};

/// Arguments of `pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// What is paused.
    #[command(flatten)]
    pub what: ResumeArgs,
    /// End the pause by itself after this time [default: it lasts until `mcprelay resume`]
    #[arg(long = "for", value_name = "DURATION", value_parser = config::duration, conflicts_with = "until")]
    pub lasting: Option<Duration>,
    /// End the pause by itself at this time of day, within the next 24 hours
    #[arg(long, value_name = "HH:MM", value_parser = time_of_day)]
    pub until: Option<NaiveTime>,
}

/// Arguments of `resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The provider; all of them, also those that come later, where it is missing
    #[arg(add = ArgValueCandidates::new(completions::providers))]
    pub name: Option<String>,
    /// Where the files are.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// Pauses, and says what changed.
pub async fn run(args: PauseArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let now = Local::now();
    let until = match (args.lasting, args.until) {
        (Some(lasting), _) => Some(SystemTime::now() + lasting),
        (None, Some(time)) => Some(next(&now, time).into()),
        (None, None) => None,
    };
    let until = until.map(|until| humantime::format_rfc3339_seconds(until).to_string());
    steer(args.what, true, until.unwrap_or_default(), env).await
}

/// Resumes, and says what changed.
pub async fn resume(args: ResumeArgs, env: Lookup<'_>) -> Result<(), Stop> {
    steer(args, false, String::new(), env).await
}

async fn steer(args: ResumeArgs, paused: bool, until: String, env: Lookup<'_>) -> Result<(), Stop> {
    let word = match (paused, &*until) {
        (false, _) => "resumed".to_owned(),
        (true, "") => "paused".to_owned(),
        (true, until) => format!("paused until {}", output::time_of_day(until, &Local::now())),
    };
    let name = args.name.as_deref();
    let changed = set_paused(&args.home.places(env)?.socket, name, paused, until).await?;
    Ok(output::print(&said(&changed, name, &word))?)
}

fn time_of_day(text: &str) -> Result<NaiveTime, String> {
    let minute = minute_of_day(text).ok_or("write it like 18:00")?;
    Ok(NaiveTime::from_hms_opt(u32::from(minute / 60) % 24, u32::from(minute % 60), 0).unwrap_or_default())
}

/// The next moment after `now` at which a clock on the wall shows `time`; where it is put forward over that time, an hour later.
fn next<Z: TimeZone>(now: &DateTime<Z>, time: NaiveTime) -> DateTime<Z> {
    let days = (0..=2).map(|days| now.date_naive() + Days::new(days));
    let moments = days.filter_map(|day| {
        let wall = day.and_time(time);
        let at = |wall| now.timezone().from_local_datetime(&wall).earliest();
        at(wall).or_else(|| at(wall + TimeDelta::hours(1)))
    });
    moments.filter(|moment| moment > now).min().unwrap_or_else(|| now.clone())
}

/// Asks the agent; returns the providers that changed.
async fn set_paused(
    socket: &Path,
    name: Option<&str>,
    paused: bool,
    until: String,
) -> Result<Vec<String>, Stop> {
    let mut agent = socket::connect(socket).await?;
    let provider_name = name.unwrap_or_default().to_owned();
    let reply = agent.set_paused(SetPausedRequest { provider_name, paused, until }).await;
    Ok(reply.map_err(|status| refused(&status, name))?.into_inner().changed)
}

fn refused(status: &tonic::Status, name: Option<&str>) -> Stop {
    match (status.code(), name) {
        (tonic::Code::NotFound, Some(name)) => Stop::Failed(format!(
            "the agent has no provider \"{}\": `mcprelay status` lists those that exist",
            Printable(name)
        )),
        _ => socket::call_failed(status),
    }
}

fn said(changed: &[String], asked: Option<&str>, word: &str) -> String {
    match (changed, asked) {
        ([], Some(name)) => format!("{} is already {word}\n", Printable(name)),
        ([], None) => format!("no provider changed; any that connects later will be {word} too\n"),
        (names, _) => names.iter().map(|name| format!("{} {word}\n", Printable(name))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use chrono_tz::Europe::Berlin;

    use super::*;
    use crate::{cli::stub::Agent, pb::WatchStatusResponse};

    #[test]
    fn it_says_what_changed() {
        let names = ["a".to_owned(), "b\n".to_owned()];
        assert_eq!(said(&names, None, "paused"), "a paused\nb\\u{a} paused\n");
        assert_eq!(said(&[], Some("a"), "resumed"), "a is already resumed\n");
        assert_eq!(
            said(&[], None, "paused"),
            "no provider changed; any that connects later will be paused too\n"
        );
    }

    #[test]
    fn until_is_the_next_time_that_the_clock_on_the_wall_shows_it() {
        let at = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().with_timezone(&Berlin);
        for (now, time, expected) in [
            ("2026-12-01T17:00:00+01:00", "18:00", "2026-12-01T18:00:00+01:00"),
            ("2026-12-01T18:00:00+01:00", "18:00", "2026-12-02T18:00:00+01:00"),
            ("2026-12-01T18:00:00+01:00", "24:00", "2026-12-02T00:00:00+01:00"),
            // The clock is put forward from 02:00 to 03:00, and in autumn shows 02:30 twice.
            ("2026-03-28T12:00:00+01:00", "02:30", "2026-03-29T03:30:00+02:00"),
            ("2026-10-24T12:00:00+02:00", "02:30", "2026-10-25T02:30:00+02:00"),
            ("2026-03-28T12:00:00+01:00", "08:00", "2026-03-29T08:00:00+02:00"),
        ] {
            let next = next(&at(now), time_of_day(time).unwrap());
            assert_eq!(next, at(expected), "{time} after {now}");
        }
        assert_eq!(time_of_day("6pm").unwrap_err(), "write it like 18:00");
    }

    #[tokio::test]
    async fn the_agent_is_asked_and_an_unknown_provider_is_named() {
        let agent = Agent::serve(WatchStatusResponse::default());
        let ask = |name, paused| {
            let socket = agent.socket();
            async move { set_paused(&socket, name, paused, String::new()).await }
        };
        assert_eq!(ask(Some("a"), true).await, Ok(vec!["a".into()]));
        assert_eq!(ask(None, false).await, Ok(vec!["a".into()]));
        let Err(Stop::Failed(message)) = ask(Some("b"), true).await else { panic!("fails") };
        assert!(message.starts_with("the agent has no provider \"b\""), "{message}");
    }
}
