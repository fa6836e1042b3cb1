use super::*;

const HERE: Option<&str> = Some("http://127.0.0.1:1/%");

fn id(text: &str) -> TaskId {
    TaskId::new(text).unwrap()
}

fn ids(left: Vec<(TaskId, Owner)>) -> Vec<TaskId> {
    left.into_iter().map(|(id, _)| id).collect()
}

#[test]
fn tasks_that_were_under_way_are_found_again_and_the_others_are_not() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mcprelay.tasks");
    let (mut file, left) = TaskFile::open(path.clone());
    assert!(left.is_empty());
    for name in ["a", "b/../\n%", "c"] {
        file.begun(&id(name), HERE);
    }
    file.over(&id("a"));
    file.flush();
    // A killed agent runs no destructors.
    std::mem::forget(file);
    let (mut file, left) = TaskFile::open(path.clone());
    assert_eq!(ids(left), [id("b/../\n%"), id("c")]);
    file.begun(&id("d"), HERE);
    file.over(&id("c"));
    let left = ["a", "b/../\n%", "c", "d"].map(|name| file.is_orphan(&id(name), HERE));
    assert_eq!(left, [false, true, false, false], "until it has its end");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_line_that_a_crash_cut_off_costs_only_itself() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mcprelay.tasks");
    fs::write(&path, "+a\n+b%2\n\n*c\n+d\n+e").unwrap();
    assert_eq!(ids(TaskFile::open(path.clone()).1), [id("a"), id("d")], "the last one may have been longer");
    fs::write(&path, "+a\n+ab\n-a").unwrap();
    assert_eq!(ids(TaskFile::open(path).1), [id("a"), id("ab")], "and so may what is over");
}

#[test]
fn each_task_is_found_again_with_the_mcpd_that_handed_it_over() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mcprelay.tasks");
    fs::write(&path, "+old\n").unwrap();
    let there = Some("http://127.0.0.1:2");
    let with = |name, url: Option<&str>| (id(name), url.map(Arc::from));
    let (mut file, left) = TaskFile::open(path.clone());
    assert_eq!(left, [with("old", None)], "a file of an older agent does not say");
    for (name, url) in [("a", HERE), ("b", there), ("c", HERE), ("d", HERE)] {
        file.begun(&id(name), url);
    }
    file.flush();
    assert_eq!(fs::read_to_string(&path).unwrap().matches('@').count(), 3, "only where it changes");
    let all = [with("old", None), with("a", HERE), with("b", there), with("c", HERE), with("d", HERE)];
    assert_eq!(read_left(&path), all);
    drop(file);
    let (mut file, _) = TaskFile::open(path.clone());
    let here = ["old", "a", "b"].map(|name| file.is_orphan(&id(name), HERE));
    assert_eq!(here, [true, true, false], "the same id of another mcpd is another task");
    file.begun(&id("b"), HERE);
    file.flush();
    drop(file);
    let grouped = ["old", "a", "b", "c", "d"].map(|name| with(name, HERE.filter(|_| name != "old")));
    assert_eq!(TaskFile::open(path).1.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(grouped));
}

#[test]
fn a_failed_write_does_not_name_the_file_beside() {
    let home = tempfile::tempdir().unwrap();
    let error = write_atomically(&home.path().join("none/file"), b"x").unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains(".mcprelay-")), (io::ErrorKind::NotFound, false));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_that_has_room_again_gets_the_tasks_that_are_under_way_then() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mcprelay.tasks");
    let (mut file, _) = TaskFile::open(path.clone());
    file.begun(&id("over"), HERE);
    file.flush();
    file.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
    file.begun(&id("unwritten"), HERE);
    file.flush();
    file.over(&id("over"));
    file.flush();
    assert_eq!(ids(read_left(&path)), [id("over")], "a full disk is left alone for a while");
    tokio::time::advance(WRITE_RETRY).await;
    file.begun(&id("new"), HERE);
    file.flush();
    assert_eq!(ids(read_left(&path)), [id("new"), id("unwritten")]);
    file.over(&id("new"));
    file.flush();
    assert_eq!(ids(read_left(&path)), [id("unwritten")]);
}

#[test]
fn the_tasks_file_does_not_grow_without_bound() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mcprelay.tasks");
    let (mut file, _) = TaskFile::open(path.clone());
    for n in 0..100_000 {
        let task = id(&format!("task-{n}"));
        file.begun(&task, HERE);
        file.over(&task);
        file.flush();
    }
    assert!(fs::metadata(&path).unwrap().len() <= COMPACT_AT + 100);
}

#[test]
fn many_tasks_under_way_do_not_have_the_file_written_anew_each_time() {
    use std::os::unix::fs::MetadataExt as _;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mcprelay.tasks");
    let (mut file, _) = TaskFile::open(path.clone());
    let task = |n: usize| id(&format!("{n}-{}", "x".repeat(500)));
    (0..4_000).for_each(|n| file.begun(&task(n), HERE));
    file.flush();
    let written = || fs::metadata(&path).unwrap().ino();
    let before = written();
    for n in 4_000..4_100 {
        file.begun(&task(n), HERE);
        file.flush();
    }
    assert_eq!(written(), before, "2 MiB are under way");
    (0..4_100).for_each(|n| file.over(&task(n)));
    file.flush();
    file.begun(&task(0), HERE);
    file.flush();
    assert!(fs::metadata(&path).unwrap().len() <= COMPACT_AT, "what is over goes");
}
