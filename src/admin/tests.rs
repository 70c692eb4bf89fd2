use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as Listener, TcpStream as Stream};

use super::*;

/// Answers with a heartbeat, until the process ends.
fn answers(heartbeat: Heartbeat) -> SocketAddr {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (_, reports) = watch::channel(Arc::new(Report::default()));
    let metrics = Arc::new(Metrics::new(reports.clone()));
    let admin = Admin { reports, metrics, inbox: Inbox::new().unwrap(), heartbeat };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(admin.serve(listener))
    });
    address
}

/// The status line and the body of an answer.
fn ask(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = Stream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[test]
fn a_loop_that_does_not_turn_is_not_healthy_and_one_that_turns_again_is() {
    let heartbeat = Heartbeat::default();
    heartbeat.beat();
    let after = |seconds| heartbeat.later(Duration::from_secs(seconds));
    let healthy = ("HTTP/1.0 200 OK".to_owned(), "ok\n".to_owned());
    let stuck = ("HTTP/1.0 503 Service Unavailable".to_owned(), "the loop does not turn\n".to_owned());
    // It waits for a minute at most, and a turn takes a while.
    assert_eq!(Heartbeat::MOST.as_secs(), 60);
    assert_eq!(ask(answers(heartbeat.clone()), "/healthz"), healthy);
    assert_eq!(ask(answers(after(118)), "/healthz"), healthy);
    let late = after(121);
    let address = answers(late.clone());
    assert_eq!(ask(address, "/healthz"), stuck);
    // Whatever else is asked is answered meanwhile.
    assert_eq!(ask(address, "/status").0, "HTTP/1.0 200 OK");
    assert_eq!(ask(address, "/readyz").0, "HTTP/1.0 503 Service Unavailable");
    late.beat();
    assert_eq!(ask(address, "/healthz"), healthy);
}
