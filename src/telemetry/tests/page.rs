//! The metrics page.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
};

use super::{super::setup::start, *};

fn page(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Every instrument has something to show.
fn busy() -> (Telemetry, SocketAddr) {
    let telemetry = telemetry(&[], Some(loopback()));
    let handle = telemetry.handle();
    handle.metrics().reconnect();
    handle.metrics().heartbeat_missed();
    handle.metrics().link(crate::domain::LinkState::Online, Some(crate::domain::Trouble::ReadTimeout));
    handle.metrics().providers([(provider().name, "loading")].into());
    run(&handle, None, EndKind::Answered);
    run(&handle, None, FAILED);
    let address = telemetry.page_address().unwrap();
    (telemetry, address)
}

#[test]
fn the_metrics_page_shows_every_instrument() {
    let (_telemetry, address) = busy();
    let page = page(address);
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"));
    for line in [
        r#"mcprelay_link_state{mcprelay_link_state="online"} 1"#,
        r#"mcprelay_link_state{mcprelay_link_state="backoff"} 0"#,
        r#"mcprelay_link_trouble{mcprelay_link_trouble="channel_read_timeout"} 1"#,
        r#"mcprelay_link_trouble{mcprelay_link_trouble="results_fail"} 0"#,
        "mcprelay_link_reconnects_total 1",
        "mcprelay_link_heartbeats_missed_total 1",
        "mcprelay_posts_sent_total 6",
        r#"mcprelay_chunks_received_total{mcprelay_llm="my-llm"} 6"#,
        "mcprelay_tasks_queued 0",
        r#"mcprelay_tasks_running{mcprelay_llm="my-llm"} 0"#,
        r#"mcprelay_tasks_ended_total{mcprelay_llm="my-llm",mcprelay_task_outcome="ok"} 1"#,
        r#"mcprelay_tasks_ended_total{error_type="provider_lost",mcprelay_llm="my-llm",mcprelay_task_outcome="provider_lost"} 1"#,
        r#"mcprelay_provider_state{mcprelay_llm="my-llm",mcprelay_provider_state="loading"} 1"#,
        r#"mcprelay_provider_state{mcprelay_llm="my-llm",mcprelay_provider_state="ready"} 0"#,
    ] {
        assert!(page.contains(line), "{line} is missing in\n{page}");
    }
    for name in [
        "gen_ai_client_inference_duration_seconds",
        "gen_ai_client_inference_time_to_first_chunk_seconds",
        "gen_ai_client_inference_time_per_output_chunk_seconds",
        "http_client_request_duration_seconds",
    ] {
        assert!(page.contains(&format!("# TYPE {name} histogram")), "{name} is missing in\n{page}");
    }
    for (name, tokens) in [("input", 22), ("output", 6), ("cache_read_input", 8), ("reasoning_output", 4)] {
        let name = format!("gen_ai_client_inference_usage_{name}_tokens_total{{");
        let line =
            page.lines().find(|line| line.starts_with(&name)).unwrap_or_else(|| panic!("{name} in {page}"));
        let labels = [r#"gen_ai_token_modality="unknown""#, r#"gen_ai_provider_name="ollama""#];
        assert!(labels.iter().all(|label| line.contains(label)), "{line}");
        assert!(line.ends_with(&format!(" {tokens}")), "{line}");
    }
}

#[test]
fn promtool_accepts_the_metrics_page_where_it_is_installed() {
    let (_telemetry, address) = busy();
    let page = page(address);
    let (_, body) = page.split_once("\r\n\r\n").unwrap();
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        println!("NOT CHECKED: promtool is absent; it comes with Debian's prometheus package.");
        return;
    };
    promtool.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_metrics_page_is_for_this_machine_alone() {
    let settings =
        Settings { log_format: LogFormat::Text, metrics_listen: Some(SocketAddr::from(([0, 0, 0, 0], 0))) };
    let error = start(&settings, &|_| None).err().unwrap();
    assert!(error.to_string().contains("is not a loopback address"), "{error}");
}

#[test]
fn a_taken_address_is_said_with_what_to_do() {
    let taken = TcpListener::bind(loopback()).unwrap();
    let metrics_listen = Some(taken.local_addr().unwrap());
    let error = start(&Settings { log_format: LogFormat::Text, metrics_listen }, &|_| None).err().unwrap();
    assert!(error.to_string().contains("give --metrics-listen another address"), "{error}");
}

#[test]
fn the_dashboard_and_the_guide_name_only_metrics_that_exist() {
    let (_telemetry, address) = busy();
    let page = page(address);
    let names = |text: &str| {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map(str::to_owned);
        let metric =
            |w: &String| ["gen_ai_client_", "http_client_", "mcprelay_"].iter().any(|p| w.starts_with(p));
        words.filter(metric).collect::<std::collections::BTreeSet<_>>()
    };
    let shown = names(&page);
    for text in [
        include_str!("../../../docs/grafana-dashboard.json"),
        include_str!("../../../docs/guides/telemetry.md"),
    ] {
        let unknown: Vec<_> = names(text).difference(&shown).cloned().collect();
        assert_eq!(unknown, Vec::<String>::new());
    }
}
