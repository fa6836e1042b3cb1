//! The owner's terms: pauses that last and end, and rules for when a machine is shared.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use fake_mcpd::{Call, FakeMcpd, InferReply, InferRequest};
use mcprelay::{
    config::{PAUSES_FILE, USAGE_FOLDER},
    domain::{Fact, Facts, UnixTime},
    pb::{self, GetUsageRequest, SetPausedRequest, Sharing, UsageBy},
    provide::config_file,
};

use crate::{
    processes,
    support::{
        Client, EPOCH, Logs, Watch, World, chat, completion, pass,
        process::{self, Process, mcprelay},
        provider, soon,
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn infer(world: &World, llm: &str) -> Call {
    world.mcpd.submit(InferRequest::new(llm, &chat("hi"))).expect("accepted")
}

async fn pause(client: &mut Client, name: &str, until: Option<u64>) {
    let at = |seconds| std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    let until = until.map(|until| humantime::format_rfc3339(at(until)).to_string()).unwrap_or_default();
    let request = SetPausedRequest { provider_name: name.to_owned(), paused: true, until };
    let changed = client.rpc.set_paused(request).await.expect("accepted").into_inner().changed;
    assert_eq!(changed, [name]);
}

/// Waits until the status says this of a provider; empty if it works.
async fn told(world: &World, llm: &str, detail: &str) -> pb::ProviderStatus {
    let mut watch = Watch::open(&world.config.socket).await;
    let is_so =
        |p: &&pb::ProviderStatus| p.provider.as_ref().is_some_and(|p| p.name == llm) && p.detail == detail;
    let status = watch.until(|status| status.providers.iter().any(|p| is_so(&p))).await;
    status.providers.iter().find(is_so).expect("it is so").clone()
}

#[tokio::test(start_paused = true)]
async fn a_pause_survives_a_restart_and_a_timed_one_ends_by_itself() {
    let mut world = World::start().await;
    let both = [provider("timed", true), provider("for-good", true)];
    let mut client = world.client_with("mcplocal", &both).await;
    pause(&mut client, "timed", Some(EPOCH + 3600)).await;
    pause(&mut client, "for-good", None).await;
    assert!(world.path(PAUSES_FILE).exists());
    world.kill_agent().await;
    drop(client);
    world.start_agent();
    let _client = world.client_with("mcplocal", &both).await;
    let status = told(&world, "timed", "paused by its owner").await;
    assert_eq!(status.paused_until, "2027-01-15T12:00:00.000Z");
    assert_eq!(told(&world, "for-good", "paused by its owner").await.paused_until, "");
    pass(3590 * SECOND).await;
    assert!(!world.mcpd.state().is_active("timed"));
    world.active("timed").await;
    assert!(!told(&world, "timed", "").await.paused);
    assert!(!world.mcpd.state().is_active("for-good"));
    let left = std::fs::read_to_string(world.path(PAUSES_FILE)).expect("one is left");
    assert!(left.contains("for-good") && !left.contains("timed"), "{left}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_ended_while_no_agent_ran_is_over() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    pause(&mut client, "llama", Some(EPOCH + 60)).await;
    world.inactive("llama").await;
    world.kill_agent().await;
    pass(61 * SECOND).await;
    world.start_agent();
    let _client = world.serving("llama").await;
    assert!(!world.path(PAUSES_FILE).exists());
}

#[tokio::test(start_paused = true)]
async fn an_unplugged_machine_takes_no_work_finishes_what_runs_and_comes_back_after_a_while() {
    let world = World::start().await;
    let sharing = vec![Sharing { on_battery: Some(false), ..Sharing::default() }];
    let careful = pb::Provider { sharing, ..provider("llama", true) };
    let mut client = world.client_with("mcplocal", &[careful]).await;
    world.active("llama").await;
    let running = infer(&world, "llama");
    let offer = client.offer().await;
    world.now(|facts| facts.on_battery = Fact::Is(true));
    let status = told(&world, "llama", "paused: on battery").await;
    assert!(status.paused && status.running == 1, "{status:?}");
    world.inactive("llama").await;
    client.finish_body(&offer, &completion("done")).await;
    assert_eq!(InferReply::from(soon("the end", running.collect()).await.end).status, 200);
    world.now(|facts| facts.on_battery = Fact::Is(false));
    pass(29 * SECOND).await;
    assert!(!world.mcpd.state().is_active("llama"));
    world.active("llama").await;
    world.now(|facts| facts.on_battery = Fact::Unreadable);
    told(&world, "llama", "paused: whether the machine is on battery cannot be told").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn hours_and_idleness_pause_too_and_a_rule_that_is_not_understood_is_refused() {
    let world = World::start().await;
    let hours = Sharing { hours: vec!["Mon 18:00-20:00".to_owned()], ..Sharing::default() };
    let idle = Sharing { when_idle_for_ms: Some(600_000), ..Sharing::default() };
    let bad = Sharing { hours: vec!["at night".to_owned()], ..Sharing::default() };
    let shared = |name, rule| pb::Provider { sharing: vec![rule], ..provider(name, true) };
    let mut client = world.client("mcplocal").await;
    let verdicts = client.push(&[shared("evening", hours), shared("away", idle), shared("bad", bad)]).await;
    let why = &verdicts[2].error.as_ref().expect("refused").message;
    assert!(why.starts_with("sharing: \"at night\" is not understood; write it like"), "{why}");
    told(&world, "evening", "paused: outside its hours").await;
    told(&world, "away", "").await;
    world.now(|facts| {
        facts.minute_of_week = 18 * 60;
        facts.idle_for = Fact::Is(SECOND);
    });
    told(&world, "away", "paused: the machine is in use").await;
    told(&world, "evening", "").await;
}

async fn usage(client: &mut Client, by: UsageBy) -> Vec<(String, f64, f64, f64)> {
    let request = GetUsageRequest { by: by.into(), days: 0 };
    let rows = client.rpc.get_usage(request).await.expect("accepted").into_inner().rows;
    rows.into_iter().map(|row| (row.key, row.tasks_ok, row.output_tokens, row.inference_seconds)).collect()
}

/// One inference for a caller, which takes two seconds and five tokens.
async fn work(world: &World, client: &mut Client, caller: Option<&str>) {
    let mut request = InferRequest::new("llama", &chat("hi"));
    request.caller = caller.map(str::to_owned);
    let call = world.mcpd.submit(request).expect("accepted");
    let offer = client.offer().await;
    pass(2 * SECOND).await;
    let body = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
    client.finish_body(&offer, body).await;
    soon("the end", call.collect()).await;
}

#[tokio::test(start_paused = true)]
async fn the_ledger_counts_by_caller_is_written_within_a_minute_and_survives_a_kill() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    for caller in [Some("alice"), Some("alice"), None] {
        work(&world, &mut client, caller).await;
    }
    let counted = vec![("alice".to_owned(), 2.0, 10.0, 4.0), (String::new(), 1.0, 5.0, 2.0)];
    let rounded = |mut rows: Vec<(String, f64, f64, f64)>| {
        rows.iter_mut().for_each(|row| row.3 = row.3.round());
        rows
    };
    assert_eq!(rounded(usage(&mut client, UsageBy::Caller).await), counted);
    let file = world.path(USAGE_FOLDER).join("2027-01-15.json");
    let written = async {
        while !file.exists() {
            pass(SECOND).await;
        }
    };
    let began = tokio::time::Instant::now();
    soon("the file", written).await;
    assert!(began.elapsed() <= 61 * SECOND, "{:?}", began.elapsed());
    world.kill_agent().await;
    drop(client);
    world.start_agent();
    let mut client = world.serving("llama").await;
    assert_eq!(rounded(usage(&mut client, UsageBy::Caller).await), counted);
    // A day later is the next day, whatever the zone of the machine.
    world.now(|facts| facts.now.0 += 24 * 3600);
    pass(2 * SECOND).await;
    work(&world, &mut client, Some("bob")).await;
    let days: Vec<_> = usage(&mut client, UsageBy::Day).await.into_iter().map(|row| (row.0, row.1)).collect();
    assert_eq!(days, [("2027-01-15".to_owned(), 3.0), ("2027-01-16".to_owned(), 1.0)]);
    world.stop_agent().await;
    assert!(world.path(USAGE_FOLDER).join("2027-01-16.json").exists(), "written at the end");
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_cannot_be_written_costs_nothing_and_a_ledger_that_is_off_says_so() {
    let logs = Logs::keep();
    let mut world = World::start().await;
    std::fs::write(world.path(USAGE_FOLDER), "no folder").expect("the home is writable");
    let mut client = world.serving("llama").await;
    work(&world, &mut client, Some("alice")).await;
    pass(200 * SECOND).await;
    assert_eq!(logs.lines_with("cannot write the usage").len(), 1);
    assert_eq!(usage(&mut client, UsageBy::Llm).await[0].1, 1.0, "it is kept in memory");
    world.stop_agent().await;
    world.config.usage_ledger = false;
    world.start_agent();
    let mut client = world.serving("llama").await;
    let refused = client.rpc.get_usage(GetUsageRequest::default()).await.expect_err("there is none");
    assert!(refused.message().contains("--usage-ledger off"), "{refused}");
}

/// Stands in for systemd-inhibit: notes its arguments, and is held for as long as the command runs that it was given.
const INHIBITOR: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" > "$here/arguments"
while [ "${1#--}" != "$1" ]; do shift; done
touch "$here/held"
"$@"
rm "$here/held"
"#;

#[tokio::test]
async fn the_machine_stays_awake_while_a_task_runs_and_nothing_is_left_after_a_kill() {
    let mcpd = FakeMcpd::start().await.expect("starts");
    let home = processes::home(&mcpd.url(), &mcpd.token());
    let script = home.path().join("systemd-inhibit");
    std::fs::write(&script, INHIBITOR).expect("the home is writable");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let path = format!("{}:{}", home.path().display(), std::env::var("PATH").unwrap_or_default());
    let start = || {
        let mut agent = mcprelay(home.path(), &["run", "--provide"]);
        agent.env("PATH", &path);
        Process::start(agent)
    };
    let held = home.path().join("held");
    let until = async |is_held: bool| {
        let change = async {
            while held.exists() != is_held {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("the inhibitor", change).await;
    };
    let mut agent = start();
    let (call, _) = processes::begun(&mcpd).await;
    until(true).await;
    let arguments = std::fs::read_to_string(home.path().join("arguments")).expect("it was called");
    assert!(arguments.starts_with("--what=idle --mode=block --who=mcprelay --why="), "{arguments}");
    let status = process::text(&process::output(home.path(), &["status"]).await);
    assert!(status.contains("\nkept awake while tasks run\n"), "{status}");
    drop(call);
    until(false).await;
    let (_call, _) = processes::begun(&mcpd).await;
    until(true).await;
    agent.kill();
    until(false).await;
}

/// The providers of the n-th example on the first screen of the guide, as the provider host reads them.
fn example(n: usize) -> Vec<config_file::Entry> {
    let guide = include_str!("../../docs/guides/sharing.md");
    let text = guide.split("```json\n").nth(n + 1).and_then(|rest| rest.split("```").next());
    let parsed = config_file::parse(text.expect("an example").as_bytes()).expect("it is JSON");
    assert!(parsed.warnings.is_empty() && parsed.entries.iter().all(|entry| entry.unshared.is_none()));
    parsed.entries
}

/// Whether each provider of an example works under these facts.
fn shared(n: usize, minute_of_week: u16, on_battery: bool, idle_minutes: u64) -> bool {
    let facts = Facts {
        now: UnixTime(0),
        minute_of_week,
        on_battery: Fact::Is(on_battery),
        idle_for: Fact::Is(60 * SECOND * u32::try_from(idle_minutes).expect("minutes")),
    };
    let mut rules = example(n).into_iter().flat_map(|entry| entry.sharing);
    rules.all(|rule| rule.judge(&facts) == Some(Ok(())))
}

#[test]
fn the_guides_examples_are_nights_and_weekends_not_on_battery_and_only_while_away() {
    let hour = |day: u16, hour: u16| (day * 24 + hour) * 60;
    for (at, is_shared) in
        [(hour(0, 12), false), (hour(0, 18), true), (hour(1, 7), true), (hour(5, 12), true)]
    {
        assert_eq!(shared(0, at, true, 0), is_shared, "{at}");
    }
    assert!(shared(1, 0, false, 0) && !shared(1, 0, true, 60));
    assert!(example(1).iter().all(|entry| entry.sharing.len() == 1), "for all of them");
    assert!(shared(2, 0, true, 10) && !shared(2, 0, true, 9));
}
