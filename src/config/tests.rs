//! What flags and environment become, and what is refused.

use std::collections::BTreeMap;

use secrecy::ExposeSecret as _;

use super::*;

fn parse(flags: &[&str], env: &[(&str, &str)]) -> Result<Config, String> {
    let mut table: BTreeMap<_, _> = env.iter().copied().collect();
    table.entry("HOME").or_insert("/home/u");
    let lookup: Lookup<'_> = &|name| table.get(name).filter(|value| **value != "unset").map(OsString::from);
    let args = parse_args(flags, lookup).map_err(|error| error.to_string())?;
    Config::new(args, lookup).map_err(|error| error.to_string())
}

fn refusal(flags: &[&str]) -> String {
    parse(flags, &[]).expect_err("must be refused")
}

#[test]
fn the_defaults_are_those_of_the_table() {
    let config = parse(&[], &[]).expect("defaults");
    let seconds = Duration::from_secs;
    assert_eq!(config.home, Path::new("/home/u/.mcpctl"));
    assert_eq!(config.socket, Path::new("/home/u/.mcpctl/mcprelay.sock"));
    assert_eq!((config.reconnect_min, config.reconnect_max), (seconds(5), seconds(60)));
    assert_eq!((config.heartbeat_interval, config.drain_timeout), (seconds(30), seconds(120)));
    assert_eq!((config.task_timeout, config.queue_timeout), (seconds(600), seconds(30)));
    assert_eq!((config.first_token_timeout, config.idle_token_timeout), (seconds(300), seconds(300)));
    assert_eq!((config.channel_idle_timeout, config.event_limit), (seconds(60), 32 << 20));
    assert_eq!((config.max_in_flight, config.max_queued, config.socket_mode), (4, 64, 0o600));
    assert!(config.mcpd_url.is_none() && config.token.is_none() && config.metrics_listen.is_none());
    assert!(!config.allow_insecure_http && config.allow_uid.is_empty() && config.ca_file.is_none());
}

#[test]
fn a_flag_comes_before_the_environment_and_the_environment_before_the_default() {
    let env = [
        ("MCPRELAY_QUEUE_TIMEOUT", "1m"),
        ("MCPRELAY_ALLOW_UID", "5,6"),
        ("MCPRELAY_ALLOW_INSECURE_HTTP", "1"),
    ];
    let config = parse(&[], &env).expect("good");
    assert_eq!((config.queue_timeout, config.allow_insecure_http), (Duration::from_secs(60), true));
    assert_eq!(config.allow_uid, [5, 6]);
    let config = parse(&["--queue-timeout=2s", "--allow-uid=7"], &env).expect("good");
    assert_eq!((config.queue_timeout, config.allow_uid), (Duration::from_secs(2), vec![7]));
}

#[test]
fn a_variable_that_is_set_to_nothing_counts_as_unset() {
    let env =
        ["HOME", "SOCKET", "MCPD_URL", "MAX_IN_FLIGHT", "QUEUE_TIMEOUT", "ALLOW_UID", "ALLOW_INSECURE_HTTP"]
            .map(|name| format!("MCPRELAY_{name}"));
    let env: Vec<_> = env.iter().map(|name| (name.as_str(), "")).collect();
    let (emptied, without) = (parse(&[], &env).expect("unset"), parse(&[], &[]).expect("defaults"));
    assert_eq!(format!("{emptied:?}"), format!("{without:?}"));
}

#[test]
fn a_switch_in_the_environment_is_on_or_off_and_nothing_else() {
    let sent = |value| {
        parse(&[], &[("MCPRELAY_ALLOW_INSECURE_HTTP", value)]).map(|config| config.allow_insecure_http)
    };
    assert_eq!(
        (sent("true"), sent("yes"), sent("0"), sent("off")),
        (Ok(true), Ok(true), Ok(false), Ok(false))
    );
    let refused = sent("maybe").expect_err("a word that is neither must not send a token in the clear");
    assert!(refused.contains("maybe"), "{refused}");
}

#[test]
fn every_flag_has_its_variable_and_says_its_default() {
    for arg in AgentArgs::augment_args(clap::Command::new("mcprelay")).get_arguments() {
        let flag = arg.get_long().expect("a long flag");
        let variable = format!("MCPRELAY_{}", flag.replace('-', "_").to_uppercase());
        assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(&*variable));
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(!arg.get_default_values().is_empty() || help.contains("[default: "), "{flag}");
    }
}

#[test]
fn the_token_comes_from_the_environment_only_and_an_empty_one_is_none() {
    let token = |value| parse(&[], &[("MCPRELAY_TOKEN", value)]).map(|config| config.token);
    assert_eq!(token("abc").expect("good").expect("there").expose_secret(), "abc");
    assert!(token("").expect("good").is_none());
    let refused = token("s3cret s3cret").expect_err("refused");
    assert!(refused.contains("MCPRELAY_TOKEN") && !refused.contains("s3cret"));
    assert!(refusal(&["--token=abc"]).contains("unexpected argument"));
}

#[test]
fn a_bad_value_is_refused_with_what_to_write() {
    for (flag, hint) in [
        ("--heartbeat-interval=0s", "greater than zero"),
        ("--task-timeout=5", "30s or 10m"),
        ("--task-timeout=31days", "at most 30 days"),
        ("--event-limit=1KiB", "64KiB to 1GiB"),
        ("--event-limit=18446744073709551615GiB", "512KiB or 32MiB"),
        ("--max-in-flight=0", "1..=1000000"),
        ("--metrics-listen=0.0.0.0:1", "only loopback"),
        ("--metrics-listen=9464", "127.0.0.1:9464"),
        ("--socket-mode=0777", "0600, 0660 or 0666"),
        ("--socket-mode=0400", "0600, 0660 or 0666"),
        ("--mcpd-url=ftp://h", "neither http nor https"),
        ("--log-format=xml", "auto, text, json"),
    ] {
        let refused = refusal(&[flag]);
        assert!(refused.contains(hint), "{flag}: {refused}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused_with_both_names() {
    let refused = refusal(&["--reconnect-min=2m"]);
    assert!(refused.contains("--reconnect-min") && refused.contains("MCPRELAY_RECONNECT_MAX"));
    assert!(refusal(&[&format!("--home=/{}", "x".repeat(100))]).contains("--socket"));
    assert!(parse(&[], &[("HOME", "unset")]).expect_err("no HOME").contains("pass an absolute path"));
    assert!(parse(&["--home=/h"], &[("HOME", "unset")]).is_ok());
}

#[test]
fn zero_is_a_drain_timeout_and_logs_are_json_off_a_terminal() {
    assert_eq!(parse(&["--drain-timeout=0s"], &[]).expect("good").drain_timeout, Duration::ZERO);
    assert!(LogFormat::Auto.is_json(false) && !LogFormat::Auto.is_json(true));
    assert!(LogFormat::Json.is_json(true) && !LogFormat::Text.is_json(false));
}

#[test]
fn the_defaults_of_a_home_ignore_the_environment() {
    let config = Config::defaults(Path::new("/tmp/x")).expect("good");
    assert_eq!(config.socket, Path::new("/tmp/x/mcprelay.sock"));
}
