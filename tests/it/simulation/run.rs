//! Plays one schedule: a whole agent, an mcpd, a network between them, programs and callers, on one thread and a paused clock.

use std::{fs, sync::atomic::Ordering, time::Duration};

use fake_mcpd::{Aim, CallKind, Entry, FakeMcpd, InferRequest, Kind, TaskEnd};
use fastrand::Rng;
use mcprelay::{agent::Stopped, domain::Fact};

use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    journal,
    plan::{self, CallPlan, Fault, Plan},
    program::{Program, at as moment},
    story::{Call, Life, Ms, Scribe, Story},
};
use crate::support::{
    Scheme, World, chat,
    proxy::{Order, Proxy},
};

/// Longest wait for the agent to be gone, beyond what it is allowed.
const PATIENCE: Duration = Duration::from_secs(600);

/// Plays a schedule to its end.
pub fn play(plan: &Plan) -> Story {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(Stage::play(plan))
}

/// What the plan has for one moment.
enum Step {
    Fault(Fault),
    Call(CallPlan),
}

struct Stage<'a> {
    plan: &'a Plan,
    world: World,
    proxy: Proxy,
    scribe: Scribe,
    programs: JoinSet<()>,
    calls: JoinSet<()>,
    dead: bool,
    /// Whether the owner wanted to resume while no agent ran.
    resume_due: bool,
}

impl<'a> Stage<'a> {
    async fn play(plan: &'a Plan) -> Story {
        let mut stage = Self::set(plan).await;
        let faults = plan.faults.iter().map(|(at, fault)| (*at, Step::Fault(fault.clone())));
        let calls = plan.calls.iter().map(|call| (call.at, Step::Call(call.clone())));
        let mut steps: Vec<_> = faults.chain(calls).filter(|(at, _)| *at <= plan.drain_at).collect();
        steps.sort_by_key(|(at, _)| *at);
        for (at, step) in steps {
            sleep_until(stage.scribe.moment(at)).await;
            match step {
                Step::Fault(fault) => stage.fault(fault).await,
                Step::Call(call) => stage.call(call),
            }
        }
        sleep_until(stage.scribe.moment(plan.drain_at)).await;
        stage.end().await
    }

    async fn set(plan: &'a Plan) -> Self {
        let mut mcpd = FakeMcpd::builder()
            .idempotent_results(plan.idempotent)
            .result_stream(plan.result_stream)
            .ping_style(plan.ping_style);
        if let Some(keep_alive) = plan.keep_alive {
            mcpd = mcpd.keep_alive(keep_alive);
        }
        let mut world = World::over(plan.scheme, mcpd, |config| {
            config.max_in_flight = plan.max_in_flight;
            config.max_queued = plan.max_queued;
            config.drain_timeout = plan.drain_timeout;
            config.task_timeout = plan::TASK_TIMEOUT;
            config.first_token_timeout = plan::FIRST_TOKEN;
            config.idle_token_timeout = plan::IDLE_TOKEN;
            config.queue_timeout = plan::QUEUE;
        })
        .await;
        world.seed = plan.seed;
        let proxy = Proxy::start(world.mcpd.address()).await.expect("a loopback port");
        let scribe = Scribe::new();
        let mut stage = Self {
            plan,
            world,
            proxy,
            scribe,
            programs: JoinSet::new(),
            calls: JoinSet::new(),
            dead: false,
            resume_due: false,
        };
        stage.write_credentials();
        stage.world.start_agent();
        stage.begin_life();
        stage.start_programs();
        stage
    }

    fn write_credentials(&self) {
        self.scribe.story().credentials.push(self.scribe.now());
        let credentials =
            json!({"mcpdUrl": self.world.url_through(&self.proxy), "token": self.world.mcpd.token()});
        self.world.write("credentials", &credentials.to_string());
    }

    fn start_programs(&mut self) {
        for plan in &self.plan.programs {
            let program = Program {
                rng: Rng::with_seed(plan.seed),
                plan: plan.clone(),
                socket: self.world.config.socket.clone(),
                scribe: self.scribe.clone(),
                max_in_flight: self.plan.max_in_flight,
            };
            self.programs.spawn(program.live());
        }
    }

    // ---- callers ---------------------------------------------------------------------------------------------------

    /// Somebody asks, reads what comes as it comes, and leaves if that is the plan.
    fn call(&mut self, plan: CallPlan) {
        let (body, at) = (chat("go"), self.scribe.now());
        let request = if plan.streaming {
            InferRequest::streaming(plan.llm, &body)
        } else {
            InferRequest::new(plan.llm, &body)
        };
        let (llm, streaming, deadline) = (plan.llm, plan.streaming, plan.deadline);
        let mut seen = Call { at, llm, streaming, deadline, ..Call::default() };
        let n = self.scribe.story().calls.len();
        match self.world.mcpd.submit(InferRequest { deadline: plan.deadline, ..request }) {
            Err(refused) => {
                self.scribe.log(format_args!("call {n} refused: {}", refused.status));
                seen.refused = Some(refused.status);
            }
            Ok(call) => {
                self.scribe.log(format_args!("call {n} is {} for {}", call.task_id(), plan.llm));
                call.task_id().clone_into(&mut seen.task);
                let leaves = plan.leaves_after.map(|after| self.scribe.moment(at + after));
                self.calls.spawn(listen(n, call, leaves, self.scribe.clone()));
            }
        }
        self.scribe.story().calls.push(seen);
    }

    // ---- what goes wrong -------------------------------------------------------------------------------------------

    async fn fault(&mut self, fault: Fault) {
        self.scribe.log(format_args!("{fault:?}"));
        let now = self.scribe.now();
        match fault {
            Fault::Network(Order::CutReply) if self.plan.scheme != Scheme::Http => {
                // The relay cannot tell a reply from the rest of TLS; mcpd can.
                self.world.mcpd.lose_reply(Aim::next(CallKind::Result));
            }
            Fault::Network(order) => self.proxy.order(order),
            Fault::Mcpd(fault) => self.mcpd(fault, now),
            Fault::Pause(paused) => self.pause(paused, now).await,
            Fault::Unplug(lasting) => {
                // The rule has to hold for 30 s again, and the agent looks once a second.
                self.scribe.story().paused.push((now, now + lasting + 33_000));
                self.world.now(|facts| facts.on_battery = Fact::Is(true));
            }
            Fault::Plug => self.world.now(|facts| facts.on_battery = Fact::Is(false)),
            Fault::Kill => self.kill().await,
            Fault::Revive => self.revive().await,
            Fault::Sleep(ms) => {
                self.scribe.story().woke.push(now);
                self.world.slept.fetch_add(ms, Ordering::Relaxed);
            }
            Fault::LateDuplicate => self.deliver_again(),
            Fault::NewToken => self.world.mcpd.set_token(format!("token-{now}")),
            Fault::TokenWritten => self.write_credentials(),
            Fault::CredentialsSpoilt => {
                self.scribe.story().credentials.push(now);
                self.world.write("credentials", "{\"mcpdUrl\": \"http");
            }
        }
    }

    fn mcpd(&self, fault: fake_mcpd::Fault, now: u64) {
        if matches!(fault, fake_mcpd::Fault::Forget | fake_mcpd::Fault::Restart) {
            self.scribe.story().forgot.push(now);
        }
        self.world.mcpd.fault(fault);
    }

    async fn pause(&mut self, paused: bool, now: u64) {
        // A pause outlives the agent, so its owner ends it once there is one again.
        self.resume_due = self.dead && !paused;
        let client = crate::support::Client::try_connect(&self.world.config.socket, "owner");
        let Some(mut client) = client.await else { return };
        let request = mcprelay::pb::SetPausedRequest { paused, ..mcprelay::pb::SetPausedRequest::default() };
        if client.rpc.set_paused(request).await.is_ok() {
            let mut story = self.scribe.story();
            if paused {
                story.paused.push((now, Ms::MAX));
            } else {
                close(&mut story.paused, now);
            }
        }
    }

    async fn kill(&mut self) {
        if !std::mem::replace(&mut self.dead, true) {
            self.world.kill_agent().await;
            self.end_life();
        }
    }

    async fn revive(&mut self) {
        if std::mem::take(&mut self.dead) {
            self.world.start_agent();
            self.begin_life();
            if self.resume_due {
                self.pause(false, self.scribe.now()).await;
            }
        }
    }

    /// mcpd hands over a task again that this agent has had, under way or not.
    fn deliver_again(&self) {
        let journal = self.world.mcpd.journal();
        let took = self.took();
        let delivered =
            |e: &&Entry| e.kind == Kind::Task && e.task.as_ref().is_some_and(|t| took.contains(t));
        // Whoever is told that its session is unknown forgets what it had in it.
        let unknown = |e: &Entry| {
            matches!(e.kind, Kind::Call(CallKind::Heartbeat | CallKind::Stream))
                && matches!(e.status, Some(404 | 410))
        };
        let forgotten = journal.iter().any(|e| unknown(e) || e.kind == Kind::Fault && forgets(&e.text()));
        if let Some(entry) = journal.iter().find(delivered).filter(|_| !forgotten) {
            self.scribe.log(format_args!("{} is delivered again", entry.task.as_deref().unwrap_or_default()));
            self.world.mcpd.send_raw(format!("event: task\\ndata: {}\\n\\n", entry.text()));
        }
    }

    // ---- the agent's lives -----------------------------------------------------------------------------------------

    fn begin_life(&self) {
        let since = self.scribe.now();
        self.scribe.story().lives.push(Life { since, ..Life::default() });
    }

    fn end_life(&self) {
        let now = self.scribe.now();
        let (took, left) = (self.took(), self.left());
        let mut story = self.scribe.story();
        let life = story.lives.last_mut().expect("a life began");
        (life.until, life.took, life.left) = (Some(now), took, left);
    }

    fn tasks_file(&self) -> Vec<(bool, String)> {
        let text = fs::read_to_string(self.world.path(mcprelay::config::TASKS_FILE)).unwrap_or_default();
        text.lines().filter_map(|l| Some((l.starts_with('+'), l.get(1..)?.to_owned()))).collect()
    }

    fn took(&self) -> Vec<String> {
        self.tasks_file().into_iter().filter_map(|(begun, id)| begun.then_some(id)).collect()
    }

    fn left(&self) -> Vec<String> {
        let lines = self.tasks_file();
        let over = |id: &String| lines.iter().any(|(begun, other)| !begun && other == id);
        self.took().into_iter().filter(|id| !over(id)).collect()
    }

    // ---- the end ---------------------------------------------------------------------------------------------------

    async fn end(mut self) -> Story {
        self.scribe.log("the agent is told to stop");
        let began = self.scribe.now();
        self.revive().await;
        self.scribe.story().drain_at = began;
        self.world.drain();
        let stopped = tokio::time::timeout(PATIENCE, self.world.stopped()).await;
        let gone = self.scribe.now();
        self.scribe.log(format_args!("the agent is gone: {:?}", stopped.as_ref().ok()));
        self.end_life();
        self.scribe.story().stopped = stopped.ok().map(|how| (gone, how == Stopped::Drained));
        // Callers whose tasks were never handed over wait for mcpd's own deadline.
        self.programs.shutdown().await;
        self.calls.shutdown().await;
        self.write_journal(gone);
        match self.plan.scheme {
            Scheme::Http => self.scribe.wire(self.proxy.seen()),
            _ => self.scribe.story().wire = journal::passed(&self.world.mcpd.journal()),
        }
        let (plan, violations) = (self.plan, self.world.mcpd.violations());
        let story = self.scribe.take();
        Story {
            drain_timeout: plan.drain_timeout,
            max_in_flight: plan.max_in_flight,
            max_queued: plan.max_queued,
            idempotent: plan.idempotent,
            scheme: plan.scheme,
            sealed: plan.is_sealed(),
            result_stream: plan.result_stream,
            uploads: self.world.mcpd.verdict().counts.uploads,
            violations,
            ..story
        }
    }

    /// What mcpd saw while there was an agent: whether it still notices that the last channel closed, once everybody has
    /// left, is up to the machine.
    fn write_journal(&self, gone: Ms) {
        let noticed = |e: &Entry| e.kind == Kind::ChannelClosed && e.at_ms >= gone;
        let journal = self.world.mcpd.journal().into_iter().filter(|e| !noticed(e));
        let lines = journal.map(|e| {
            let (task, key) = (e.task.unwrap_or_default(), e.key.unwrap_or_default());
            format!("{:>7} mcpd {:?} {task} {key} {:?}", e.at_ms, e.kind, e.status)
        });
        self.scribe.story().log.extend(lines);
    }
}

/// Ends the spans that have no end yet.
fn close(spans: &mut [(Ms, Ms)], now: Ms) {
    spans.iter_mut().filter(|(_, until)| *until == Ms::MAX).for_each(|span| span.1 = now);
}

fn forgets(fault: &str) -> bool {
    fault.contains("\"forget\"") || fault.contains("\"restart\"")
}

/// One caller, until its end or until it leaves.
async fn listen(n: usize, mut call: fake_mcpd::Call, leaves: Option<Instant>, scribe: Scribe) {
    loop {
        tokio::select! {
            biased;
            chunk = call.chunk() => match chunk {
                Some(chunk) => scribe.story().calls[n].text.push_str(&delta(&chunk)),
                None => break,
            },
            () = moment(leaves) => {
                scribe.log(format_args!("call {n} leaves"));
                let now = scribe.now();
                scribe.story().calls[n].left_at = Some(now);
                return;
            }
        }
    }
    let end = call.collect().await.end;
    scribe.log(format_args!("call {n} ends: {}", word(&end)));
    let now = scribe.now();
    let mut story = scribe.story();
    if let TaskEnd::Reply { status: 200, body, .. } = &end {
        story.calls[n].text.push_str(&message(body));
    }
    story.calls[n].end = Some((now, end));
}

fn delta(chunk: &[u8]) -> String {
    let chunk: Value = serde_json::from_slice(chunk).unwrap_or_default();
    chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
}

fn message(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

/// An end in a word that is the same in every replay: messages may name ports.
pub fn word(end: &TaskEnd) -> String {
    match end {
        TaskEnd::Done => "done".to_owned(),
        TaskEnd::CallerGone => "caller gone".to_owned(),
        TaskEnd::Failed { status, code, .. } => format!("{status} {code}"),
        TaskEnd::Reply { status, body, .. } => {
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            format!("{status} {}", body["error"]["code"].as_str().unwrap_or_default())
        }
    }
}
