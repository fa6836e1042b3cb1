//! TLS: what it offers, whom it is trusted by, and the faults that reach into a connection, over both protocols.

use std::time::Duration;

use fake_mcpd::{Aim, CallKind, FakeMcpd, Kind, Refused, Tls};
use reqwest::{Client, Version};
use serde_json::json;

use crate::agent::{Agent, prompt, soon};

/// HTTP/1.1 and HTTP/2, each alone.
fn each() -> [Tls; 2] {
    [Tls::default().without_http2(), Tls::default().without_http1()]
}

async fn start(tls: Tls) -> FakeMcpd {
    FakeMcpd::builder().tls(tls).start().await.unwrap()
}

async fn version(agent: &Agent) -> Version {
    let call = agent.call("GET", "/api/v1/llms");
    soon(call.send()).await.expect("a reply").version()
}

#[tokio::test(start_paused = true)]
async fn it_speaks_the_protocols_that_are_switched_on() {
    let mcpd = start(Tls::default()).await;
    assert!(mcpd.url().starts_with("https://127.0.0.1:"));
    assert_eq!(version(&Agent::new(&mcpd)).await, Version::HTTP_2);
    let [http1, http2] = each();
    assert_eq!(version(&Agent::new(&start(http1).await)).await, Version::HTTP_11);
    let http2 = start(http2).await;
    assert_eq!(version(&Agent::new(&http2)).await, Version::HTTP_2);
    let authority = std::fs::read(http2.ca_file().unwrap()).unwrap();
    let authority = reqwest::Certificate::from_pem(&authority).unwrap();
    let old = Client::builder().http1_only().add_root_certificate(authority);
    let refused = Agent::with(old, &http2.url(), &http2.token()).call("GET", "/api/v1/llms").send().await;
    assert!(refused.is_err_and(|error| error.is_connect()), "it speaks HTTP/2 only");
}

#[tokio::test(start_paused = true)]
async fn nobody_trusts_it_without_its_authority_which_goes_with_it() {
    let mcpd = start(Tls::default()).await;
    let stranger = Agent::at(&mcpd.url(), &mcpd.token()).call("GET", "/api/v1/llms").send().await;
    assert!(format!("{:?}", stranger.unwrap_err()).contains("UnknownIssuer"));
    let file = mcpd.ca_file().unwrap().to_owned();
    drop(mcpd);
    assert!(!file.exists());
}

#[tokio::test(start_paused = true)]
async fn its_certificate_is_also_for_localhost() {
    let mcpd = start(Tls::default()).await;
    let url = mcpd.url().replace("127.0.0.1", "localhost");
    let agent = Agent::trusting(mcpd.ca_file().unwrap(), &url, &mcpd.token());
    assert_eq!(version(&agent).await, Version::HTTP_2);
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_its_whole_way() {
    for tls in each() {
        let mcpd = start(tls).await;
        let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
        let call = mcpd.infer_stream("llama", &prompt()).unwrap();
        let id = channel.task().await.id;
        assert_eq!(agent.chunk(&id, 0, "a").await, 200);
        assert_eq!(agent.chunk(&id, 1, "b").await, 200);
        assert_eq!(agent.done(&id, 2).await, 200);
        let answer = soon(call.collect()).await;
        assert!(answer.is_done() && answer.text() == "ab", "{answer:?}");
        assert_eq!(mcpd.violations(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_was_applied_and_cuts_its_connection() {
    for tls in each() {
        let mcpd = start(tls).await;
        let agent = Agent::online(&mcpd, "llama").await.0;
        mcpd.lose_reply(Aim::next(CallKind::Heartbeat));
        let call = agent.call("POST", "/api/v1/llms/_provider-heartbeat");
        let lost = soon(call.json(&json!({"providerSessionId": agent.session})).send()).await;
        assert!(lost.is_err());
        let beat = mcpd.journal().into_iter().find(|entry| entry.is_call(CallKind::Heartbeat)).unwrap();
        assert_eq!((beat.status, beat.note.as_deref()), (None, Some("reply lost")));
        assert_eq!(agent.heartbeat().await, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_is_cut_unapplied_and_a_refused_connection_has_no_handshake() {
    for tls in each() {
        let mcpd = start(tls).await;
        let agent = Agent::online(&mcpd, "llama").await.0;
        for what in [Refused::Calls, Refused::Connections] {
            let lasting = Some(Duration::from_secs(5));
            mcpd.fault(fake_mcpd::Fault::Refuse { what, lasting });
            // A connection of its own, as after a cut.
            let fresh = Agent::new(&mcpd);
            assert!(soon(fresh.call("GET", "/api/v1/llms").send()).await.is_err());
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert_eq!(agent.heartbeat().await, 200);
        }
        let cut = mcpd.journal().into_iter().find(|e| e.is_call(CallKind::List)).expect("the cut call");
        assert_eq!((cut.status, cut.note.as_deref()), (None, Some("cut unapplied")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_goes_silent_breaks_or_is_cut_by_a_restart() {
    for tls in each() {
        let mcpd = start(tls).await;
        let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
        mcpd.go_silent();
        let silence = tokio::time::timeout(Duration::from_secs(80), channel.event()).await;
        assert!(silence.is_err(), "the channel said {silence:?}");
        assert_eq!(agent.heartbeat().await, 200);
        for restart in [false, true] {
            let mut response = agent.channel_response().await.unwrap();
            response.chunk().await.unwrap().expect("a hello");
            if restart {
                mcpd.restart();
            } else {
                mcpd.break_channels();
            }
            assert!(soon(response.chunk()).await.is_err());
        }
        assert_eq!(agent.heartbeat().await, 404, "after the restart nobody is known");
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_back_call_leaves_the_others_of_its_connection_alone() {
    let mcpd = start(Tls::default().without_http1()).await;
    let agent = Agent::online(&mcpd, "llama").await.0;
    mcpd.order("delay,call=list,by=20s").unwrap();
    let held = agent.call("GET", "/api/v1/llms").send();
    let (held, quick) = tokio::join!(held, async {
        mcpd.wait_for(|entry| entry.kind == Kind::Fault).await;
        let begun = tokio::time::Instant::now();
        (agent.heartbeat().await, begun.elapsed())
    });
    assert_eq!(held.unwrap().status(), 200);
    assert_eq!(quick.0, 200);
    assert!(quick.1 < Duration::from_secs(1), "{quick:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_the_next_call_takes_a_new_one() {
    for tls in each() {
        let mcpd = FakeMcpd::builder().tls(tls).keep_alive(Duration::from_secs(2)).start().await.unwrap();
        let agent = Agent::online(&mcpd, "llama").await.0;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(agent.heartbeat().await, 200);
        }
    }
}
