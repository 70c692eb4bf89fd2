use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

/// What `wg pubkey` makes of a private key.
fn wg_pubkey(private: &str) -> String {
    let mut wg =
        Command::new("wg").arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wg.stdin.take().unwrap().write_all(private.as_bytes()).unwrap();
    let output = wg.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn none() -> Option<PrivateKey> {
    None
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_new_key_is_what_wg_understands_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let first = load_or_create(directory.path(), none);
    assert_eq!((first.origin, first.problem.is_none()), (Origin::Made, true));
    let file = directory.path().join(FILE);
    assert_eq!(mode(&file), 0o600);
    assert_eq!(wg_pubkey(&fs::read_to_string(&file).unwrap()), first.key.public().to_string());

    let again = load_or_create(directory.path(), || panic!("the file is enough"));
    assert_eq!(again.origin, Origin::File);
    assert!(again.key == first.key);
    assert_eq!(names(directory.path()), [FILE], "nothing else is left in the directory");
}

#[test]
fn a_key_of_wg_genkey_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let made = Command::new("wg").arg("genkey").output().unwrap().stdout;
    let file = directory.path().join(FILE);
    fs::write(&file, &made).unwrap();
    let loaded = load_or_create(directory.path(), none);
    assert_eq!(loaded.key.public().to_string(), wg_pubkey(str::from_utf8(&made).unwrap()));
    assert_eq!(mode(&file), 0o600, "a file that others can read is taken from them");
    assert_eq!(fs::read(&file).unwrap(), made);
}

#[test]
fn a_node_that_ran_without_a_key_file_goes_on_with_its_running_key() {
    let directory = tempfile::tempdir().unwrap();
    let running = PrivateKey::generate();
    let loaded = load_or_create(directory.path(), || Some(running.clone()));
    assert_eq!(loaded.origin, Origin::Running);
    assert!(loaded.key == running);
    assert!(load(directory.path()).unwrap() == Some(running), "and it is kept");
}

#[test]
fn a_damaged_file_is_named_kept_aside_and_costs_no_start() {
    let whole = format!("{}\n", STANDARD.encode(PrivateKey::generate().expose()));
    let mut damages: Vec<Vec<u8>> = (0..44).map(|length| whole.as_bytes()[..length].to_vec()).collect();
    damages.extend([vec![0; 45], vec![0xff; 45], [whole.as_bytes(), b"tail"].concat(), vec![b'A'; 4096]]);
    damages.push(format!("{}\n", STANDARD.encode([0; 32])).into_bytes());
    for damage in damages {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        fs::write(&file, &damage).unwrap();

        let error = load(directory.path()).unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()) && error.contains("put a copy of it back"), "{error}");

        let running = PrivateKey::generate();
        let loaded = load_or_create(directory.path(), || Some(running.clone()));
        assert!(loaded.key == running);
        let problem = loaded.problem.unwrap().to_string();
        assert!(
            problem.contains("wireguard.key.damaged-1") && problem.contains("running tunnel"),
            "{problem}"
        );
        assert_eq!(fs::read(directory.path().join("wireguard.key.damaged-1")).unwrap(), damage);
        assert!(load(directory.path()).unwrap() == Some(running));
    }
}

#[test]
fn a_second_damage_does_not_overwrite_the_first() {
    let directory = tempfile::tempdir().unwrap();
    for damage in ["one", "two"] {
        fs::remove_file(directory.path().join(FILE)).ok();
        fs::write(directory.path().join(FILE), damage).unwrap();
        load_or_create(directory.path(), none);
    }
    assert_eq!(names(directory.path()), [FILE, "wireguard.key.damaged-1", "wireguard.key.damaged-2"]);
    assert_eq!(fs::read_to_string(directory.path().join("wireguard.key.damaged-1")).unwrap(), "one");
}

#[test]
fn a_directory_that_cannot_be_written_costs_no_start() {
    let missing = Path::new("/proc/no/such/directory");
    let running = PrivateKey::generate();
    let loaded = load_or_create(missing, || Some(running.clone()));
    assert!(loaded.key == running);
    let problem = loaded.problem.unwrap().to_string();
    assert!(
        problem.contains("cannot keep the WireGuard key in /proc/no/such/directory/wireguard.key"),
        "{problem}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join(FILE)).unwrap();
    let loaded = load_or_create(directory.path(), none);
    let problem = loaded.problem.unwrap().problem();
    assert!(problem.what.contains("cannot read") && problem.what.contains(FILE), "{problem}");
    assert_eq!(problem.remedy, "make it readable for the agent and restart");
    assert_eq!(names(directory.path()), [FILE]);
}

#[test]
fn many_processes_agree_on_one_key() {
    let directory = tempfile::tempdir().unwrap();
    // One process has one name for the file beside; the loser of the link is what matters here.
    load_or_create(directory.path(), none);
    let first = load(directory.path()).unwrap().unwrap();
    let error = create(directory.path(), &directory.path().join(FILE), &PrivateKey::generate()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(load(directory.path()).unwrap() == Some(first));
    assert_eq!(names(directory.path()), [FILE]);
}

#[test]
fn a_private_key_prints_nothing() {
    assert_eq!(format!("{:?}", PrivateKey::generate()), "(hidden)");
}
