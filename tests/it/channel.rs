//! The control channel by itself, without the agent around it.

use std::{sync::Arc, time::Duration};

use fake_mcpd::FakeMcpd;
use mcprelay::{
    bridge::convert,
    upstream::{
        Event,
        client::{Access, Mcpd},
        connect::HttpSettings,
        contract::ReadFacts,
        events::{Channel, Delivered},
    },
};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::support::{chat, provider, soon};

/// A client of `fake` that has registered one provider, and its session.
async fn registered(fake: &FakeMcpd, llm: &str) -> (Mcpd, String) {
    let mcpd = Mcpd::new(HttpSettings::default(), Arc::new(|| None));
    mcpd.set_access(&Access { url: fake.url(), token: fake.token().into() }).expect("a usable URL");
    let provider = convert::provider(provider(llm, true)).expect("a good provider");
    let session = mcpd.register(None, &[provider], false).await.expect("it is taken");
    (mcpd, session)
}

async fn next(events: &mut mpsc::Receiver<Delivered>) -> Event {
    soon("an event", events.recv()).await.expect("the channel lives").0
}

#[tokio::test]
async fn a_task_that_was_read_is_said_although_the_channel_is_closed_while_it_waits() {
    let fake = FakeMcpd::builder().start().await.expect("a loopback port");
    let (mcpd, session) = registered(&fake, "llama").await;
    let (events, mut heard) = mpsc::channel(1);
    let (places, cancelled) = (Arc::new(Semaphore::new(1)), CancellationToken::new());
    let channel = Channel {
        epoch: 1,
        session,
        event_limit: 1 << 20,
        idle_timeout: Duration::from_secs(60),
        facts: ReadFacts::OfStreams,
        events: events.clone(),
        permits: Arc::clone(&places),
    };
    let running = tokio::spawn(channel.run(mcpd, cancelled.clone()));
    assert!(matches!(next(&mut heard).await, Event::ChannelOpened(1)));
    assert!(matches!(next(&mut heard).await, Event::ChannelProved(1)));
    events.send((Event::LostTask, None)).await.expect("there is room for one");
    let call = fake.infer_stream("llama", &chat("hi")).expect("accepted");
    let taken = async {
        while places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the task to have its place", taken).await;
    cancelled.cancel();
    let gone = |s: &fake_mcpd::Snapshot| s.sessions.iter().all(|s| !s.connected);
    soon("its connection to be closed", fake.wait_until(gone)).await;
    assert!(matches!(next(&mut heard).await, Event::LostTask));
    match next(&mut heard).await {
        Event::Task(task) => assert_eq!(task.id.as_str(), call.task_id()),
        other => panic!("{other:?}"),
    }
    soon("the channel's end", running).await.expect("it does not panic");
}
