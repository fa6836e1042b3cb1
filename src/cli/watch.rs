//! `mcprelay status --watch`: the status as it changes. On a terminal a view that fills it, elsewhere one line per change.

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Color, Style, Stylize as _},
    text::Line,
    widgets::Paragraph,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    Stop, agent_status,
    output::{self, Look},
    rates::Rates,
    view,
};
use crate::pb::{AgentState, WatchStatusResponse};

/// Pause between two drawings: ages and countdowns move smoothly enough, and an idle view costs next to nothing.
const REDRAW: Duration = Duration::from_millis(250);
/// The least pause between two lines if there is no terminal: the output is a log, not a flood.
const LINE_PAUSE: Duration = Duration::from_secs(1);
/// Pause between attempts to find an agent that went away: people restart it by hand.
const RETRY: Duration = Duration::from_secs(1);
/// How long the keyboard's thread waits before it checks whether its keys are still wanted.
const KEY_POLL: Duration = Duration::from_millis(100);
/// Keys typed ahead: more than anyone types between two drawings.
const KEY_BUFFER: usize = 16;
/// The indent of the later pieces of a long line.
const SET_IN: &str = "    ";
/// Lines are not folded to less than this: a piece must hold more than its indent.
const MIN_WIDTH: u16 = 20;
/// Lines that a page key scrolls: most of a small terminal.
const PAGE: u16 = 15;
/// What can be done in the view.
const HELP: &str = "q quits, up and down scroll";

/// The last news of the agent.
#[derive(Clone, Debug)]
struct News {
    what: Result<Box<WatchStatusResponse>, Stop>,
    came: Instant,
}

/// Shows the status until asked to stop. An agent that is not there at the start is a failure; one that goes away is waited for.
pub async fn run(socket: &Path) -> Result<(), Stop> {
    let first = News { what: Ok(Box::new(agent_status::once(socket).await?)), came: Instant::now() };
    let (news, seen) = watch::channel(first);
    let feed = tokio::spawn(follow(socket.to_owned(), news));
    let ended = match io::stdout().is_terminal() && io::stdin().is_terminal() {
        true => live(seen).await,
        false => lines(seen).await,
    };
    feed.abort();
    ended
}

/// Passes on every status, and the reason if there is none, for as long as anybody watches.
async fn follow(socket: PathBuf, news: watch::Sender<News>) {
    loop {
        let Err(stop) = follow_once(&socket, &news).await else { return };
        if news.send(News { what: Err(stop), came: Instant::now() }).is_err() {
            return;
        }
        sleep(RETRY).await;
    }
}

/// Ends successfully when nobody watches any more.
async fn follow_once(socket: &Path, news: &watch::Sender<News>) -> Result<(), Stop> {
    let mut stream = agent_status::open(socket).await?;
    loop {
        let what = Ok(Box::new(agent_status::next(&mut stream).await?));
        if news.send(News { what, came: Instant::now() }).is_err() {
            return Ok(());
        }
    }
}

/// Prints one line per change.
async fn lines(mut seen: watch::Receiver<News>) -> Result<(), Stop> {
    let (mut rates, mut gone) = (Rates::default(), false);
    loop {
        let news = seen.borrow_and_update().clone();
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        let is_old = std::mem::replace(&mut gone, news.what.is_err()) && gone;
        let line = match &news.what {
            Ok(status) => {
                rates.observe(status, news.came);
                format!("{time} {}", view::line(status, &|name| rates.rate(name, news.came)))
            }
            Err(Stop::Failed(reason)) => format!("{time} {reason}"),
            Err(other) => return Err(other.clone()),
        };
        if !is_old {
            output::print(&line)?;
        }
        sleep(LINE_PAUSE).await;
        if seen.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Gives the terminal back, however the view ends. A panic is covered by the hook that `ratatui` installs.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// The view that fills a terminal.
async fn live(mut seen: watch::Receiver<News>) -> Result<(), Stop> {
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [interrupt, terminate, hangup] = &mut signals;
    let (Ok(interrupt), Ok(terminate), Ok(hangup)) = (interrupt, terminate, hangup) else {
        return Err(Stop::Failed("cannot listen for signals, so the terminal could not be restored".into()));
    };
    let restore = Restore;
    let mut terminal = ratatui::try_init()?;
    let mut keys = keyboard();
    let mut ticks = interval(REDRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut screen = Screen::new(seen.borrow_and_update().clone());
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| screen.draw(frame, Instant::now(), SystemTime::now())) {
            break Err(error.into());
        }
        tokio::select! {
            changed = seen.changed() => match changed {
                Ok(()) => screen.show(seen.borrow_and_update().clone()),
                Err(_) => break Ok(()),
            },
            key = keys.recv() => if key.is_none_or(|event| !screen.key(&event)) { break Ok(()) },
            _ = ticks.tick() => {}
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            _ = hangup.recv() => break Ok(()),
        }
    };
    drop(restore);
    ended
}

/// The keyboard's events. Reading them blocks, so a thread does it; the thread ends soon after the receiver is dropped.
fn keyboard() -> mpsc::Receiver<Event> {
    let (keys, receiver) = mpsc::channel(KEY_BUFFER);
    std::thread::spawn(move || {
        while !keys.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true) => match event::read().map(|event| keys.blocking_send(event)) {
                    Ok(Ok(())) => {}
                    _ => return,
                },
                Err(_) => return,
            }
        }
    });
    receiver
}

/// What is on the screen.
struct Screen {
    news: News,
    /// The last status: it is still shown when the agent has gone, as it was then.
    status: Box<WatchStatusResponse>,
    came: Instant,
    /// When the agent went, if it has gone.
    gone: Option<Instant>,
    rates: Rates,
    /// How many lines are scrolled out at the top.
    scroll: u16,
}

impl Screen {
    fn new(news: News) -> Self {
        let (status, rates, came) = (Box::default(), Rates::default(), news.came);
        let mut screen = Self { news: news.clone(), status, came, gone: None, rates, scroll: 0 };
        screen.show(news);
        screen
    }

    fn show(&mut self, news: News) {
        match &news.what {
            Ok(status) => {
                self.rates.observe(status, news.came);
                (self.status, self.came, self.gone) = (status.clone(), news.came, None);
            }
            Err(_) => self.gone = self.gone.or(Some(news.came)),
        }
        self.news = news;
    }

    /// Handles a key; false ends the view.
    fn key(&mut self, event: &Event) -> bool {
        let Event::Key(key) = event else { return true };
        if key.kind == KeyEventKind::Release {
            return true;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Down | KeyCode::Char('j') => self.scroll = self.scroll.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll = self.scroll.saturating_add(PAGE),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(PAGE),
            _ => {}
        }
        true
    }

    fn draw(&mut self, frame: &mut Frame<'_>, at: Instant, now: SystemTime) {
        let width = frame.area().width;
        let trouble = self.trouble(width, at);
        let heights = [Constraint::Length(height(&trouble)), Constraint::Fill(1), Constraint::Length(1)];
        let [top, middle, bottom] = Layout::vertical(heights).areas(frame.area());
        let lines = self.lines(width, at, now);
        let last = height(&lines).saturating_sub(middle.height);
        self.scroll = self.scroll.min(last);
        frame.render_widget(Paragraph::new(trouble), top);
        frame.render_widget(Paragraph::new(lines).scroll((self.scroll, 0)), middle);
        frame.render_widget(Line::from(help(last - self.scroll)).dim(), bottom);
    }

    /// Why there is no newer status; never scrolled away.
    fn trouble(&self, width: u16, at: Instant) -> Vec<Line<'static>> {
        let (Err(Stop::Failed(reason)), Some(gone)) = (&self.news.what, self.gone) else { return Vec::new() };
        let ago = output::age(at.saturating_duration_since(gone));
        let as_of = format!("Below is what it last said, {ago} ago.");
        let lines = folded(reason, width).into_iter().chain(folded(&as_of, width));
        lines.map(|line| Line::from(line).red()).collect()
    }

    fn lines(&self, width: u16, at: Instant, now: SystemTime) -> Vec<Line<'static>> {
        // Nothing is counted on for an agent that has gone.
        let since = self.gone.map(|gone| at.saturating_duration_since(gone)).unwrap_or_default();
        let (at, now) = (at - since, now - since);
        let status = aged(&self.status, at.saturating_duration_since(self.came));
        let mut head = view::head(&status, now).into_iter();
        let mut lines: Vec<_> = head.next().map(Line::from).into_iter().collect();
        let style = if self.gone.is_none() { link_style(&status) } else { Style::new().dim() };
        lines.extend(head.next().map(|link| Line::from(link).style(style)));
        lines.extend(head.flat_map(|line| folded(&line, width)).map(Line::from));
        for section in view::sections(&status, now, Some(&|name| self.rates.rate(name, at))) {
            lines.push(Line::default());
            let text = view::section_text(&section, Look { width: Some(width), ..Look::default() });
            let mut rows = text.lines().flat_map(|line| folded(line, width));
            lines.extend(rows.next().map(|heading| Line::from(heading).bold()));
            lines.extend(rows.map(Line::from));
        }
        lines
    }
}

fn height(lines: &[Line<'_>]) -> u16 {
    u16::try_from(lines.len()).unwrap_or(u16::MAX)
}

/// The last line: what the keys do, and whether there is more to see.
fn help(below: u16) -> String {
    match below {
        0 => HELP.to_owned(),
        1 => format!("{HELP}; one more line below"),
        _ => format!("{HELP}; {below} more lines below"),
    }
}

/// A line in pieces of at most `width` characters, broken between words if possible; the later ones are indented. Tables fit already,
/// sentences may not.
fn folded(line: &str, width: u16) -> Vec<String> {
    let (mut rest, mut lines) = (line.to_owned(), Vec::new());
    while let Some((end, _)) = rest.char_indices().nth(usize::from(width.max(MIN_WIDTH))) {
        let begin = rest.len() - rest.trim_start().len();
        let space = match rest[end..].starts_with(' ') {
            true => Some(end),
            false => rest[..end].rfind(' ').filter(|space| *space > begin),
        };
        let (piece, after) = rest.split_at(space.unwrap_or(end));
        lines.push(piece.to_owned());
        rest = format!("{SET_IN}{}", after.trim_start());
    }
    lines.push(rest);
    lines
}

fn link_style(status: &WatchStatusResponse) -> Style {
    let state = status.agent.as_ref().map_or(AgentState::Unspecified, |agent| agent.state());
    Style::new().fg(match state {
        AgentState::Online => Color::Green,
        AgentState::Refused | AgentState::NoCredentials => Color::Red,
        _ => Color::Yellow,
    })
}

/// A status that came `since` ago, brought up to date: its ages and countdowns have continued.
fn aged(status: &WatchStatusResponse, since: Duration) -> WatchStatusResponse {
    let mut status = status.clone();
    let since = u32::try_from(since.as_millis()).unwrap_or(u32::MAX);
    if let Some(next) = status.agent.as_mut().and_then(|agent| agent.next_attempt_ms.as_mut()) {
        *next = next.saturating_sub(since);
    }
    for task in &mut status.tasks {
        task.age_ms = task.age_ms.saturating_add(since);
    }
    status
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyEvent};

    use super::*;
    use crate::cli::view::tests::{example, now};

    fn screen() -> Screen {
        Screen::new(News { what: Ok(Box::new(example())), came: Instant::now() })
    }

    fn drawn(screen: &mut Screen, height: u16, later: Duration) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, height)).expect("a terminal");
        let at = screen.news.came + later;
        terminal.draw(|frame| screen.draw(frame, at, now())).expect("draws");
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer
            .content
            .chunks(80)
            .map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>());
        rows.map(|row| row.trim_end().to_owned()).collect()
    }

    #[test]
    fn the_view_at_80_columns_counts_on_between_two_statuses() {
        let rows = drawn(&mut screen(), 24, Duration::from_millis(3_000));
        assert_eq!(rows[1], "mcpd: backoff, https://mcpd.example.com, next attempt in 2s");
        assert_eq!(rows[2], "      connection refused");
        assert_eq!(rows[5], "PROVIDER   MODEL             STATE    VERDICT        RUNNING   QUEUED   TOK/S");
        assert!(rows[10].contains("   streaming   15s   1.2s"), "{rows:#?}");
    }

    #[test]
    fn a_low_terminal_scrolls_and_never_past_the_end() {
        let mut screen = screen();
        let key = |code| Event::Key(KeyEvent::new(code, KeyModifiers::NONE));
        for _ in 0..100 {
            assert!(screen.key(&key(KeyCode::Down)));
        }
        let last = |screen: &mut Screen| drawn(screen, 10, Duration::ZERO).pop().unwrap_or_default();
        assert_eq!(last(&mut screen), HELP);
        screen.key(&key(KeyCode::Up));
        assert_eq!(last(&mut screen), format!("{HELP}; one more line below"));
        screen.key(&key(KeyCode::PageUp));
        assert_eq!(screen.scroll, 0);
    }

    #[test]
    fn a_reason_that_is_wider_than_the_terminal_is_folded_and_not_cut() {
        let mut screen = screen();
        let pushed = screen.status.providers[0].provider.get_or_insert_default();
        pushed.state_detail =
            "http://127.0.0.1:11434/v1 does not answer: Connection refused (os error 111)".into();
        let rows = drawn(&mut screen, 24, Duration::ZERO);
        let reason = rows.iter().position(|row| row.contains("does not answer")).expect("the reason");
        assert_eq!(
            rows[reason..reason + 2],
            ["  qwen3: http://127.0.0.1:11434/v1 does not answer: Connection refused (os error", "    111)"]
        );
        assert_eq!(
            folded(&"x".repeat(50), 20),
            ["x".repeat(20), format!("    {}", "x".repeat(16)), format!("    {}", "x".repeat(14))]
        );
    }

    #[test]
    fn q_escape_and_control_c_end_the_view() {
        let mut screen = screen();
        assert!(!screen.key(&Event::Key(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE))));
        assert!(!screen.key(&Event::Key(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE))));
        assert!(!screen.key(&Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL))));
        assert!(screen.key(&Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::NONE))));
    }

    #[test]
    fn an_agent_that_has_gone_is_said_above_its_last_status() {
        let mut screen = screen();
        let came = screen.news.came + Duration::from_secs(2);
        screen.show(News { what: Err(Stop::Failed("the agent has stopped".into())), came });
        // It is looked for again and again, which is no news.
        let again = came + Duration::from_secs(60);
        screen.show(News { what: Err(Stop::Failed("the agent has stopped".into())), came: again });
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
        terminal.draw(|frame| screen.draw(frame, again, now() + Duration::from_secs(62))).expect("draws");
        let text = terminal.backend().to_string();
        for part in [
            "the agent has stopped",
            "Below is what it last said, 60s ago.",
            "mcprelay 0.1.0, pid 77, up 3h1m",
            "next attempt in 3s",
            "streaming   14s",
        ] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        screen.scroll = u16::MAX;
        assert_eq!(drawn(&mut screen, 10, Duration::ZERO)[0], "the agent has stopped", "it stays in sight");
    }
}
