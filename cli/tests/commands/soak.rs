//! `fbgemm serve` under a load that lasts: every answer's bytes, and the memory of the first and the last quarter.
//!
//! The tests send some thousand requests to a small model. The long mode sends as many as the variable says to
//! all-MiniLM-L6-v2, of one to three words each:
//!
//!     FBGEMM_RS_SOAK=1000000 cargo test --release -p fbgemm-cli --test commands -- --nocapture soak

use crate::serve::{Served, model};
use fbgemm_testkit::minilm;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 64;
/// How often memory is looked at.
const LOOKS: usize = 80;

/// A connection that is kept.
struct Client {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Client {
    fn new(url: &str) -> Self {
        let host = url.strip_prefix("http://").unwrap().to_string();
        let stream = TcpStream::connect(&host).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(600))).unwrap();
        Self { stream: BufReader::new(stream), host }
    }

    fn send(&mut self, body: &str) {
        let request = format!(
            "POST /embed HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer a-secret\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
    }

    /// The status and the body.
    fn answer(&mut self) -> (u16, Vec<u8>) {
        let (mut status, mut length, mut line) = (None, 0, String::new());
        loop {
            line.clear();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "the connection was closed");
            if status.is_none() {
                status = Some(line.split(' ').nth(1).unwrap().parse().unwrap());
            }
            if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (status.unwrap(), body)
    }
}

#[test]
fn a_soak_has_no_wrong_answer_and_memory_stays() {
    let long = std::env::var("FBGEMM_RS_SOAK").ok().map(|requests| requests.parse::<usize>().expect("a number"));
    let requests = long.unwrap_or(4000);
    let folder = match long {
        Some(_) => minilm::Files::fetch(&mut |_, _| ()).unwrap().checkpoint.parent().unwrap().display().to_string(),
        None => model("bert"),
    };
    // A line a request would be a file of its own. A machine that is busy with other things may stop for a while.
    let served = Served::start(&folder, &["--log", "warn", "--deadline", "600", "--client-timeout", "600"]);
    let words = ["station", "train", "bread", "the", "cat", "sat", "on", "mat", "Zürich", "weather", "7"];
    let text = |i: usize| {
        let words: Vec<&str> = (0..1 + i % 3).map(|j| words[(i * 7 + j * 5) % words.len()]).collect();
        json!({"inputs": words.join(" ")}).to_string()
    };
    let bodies: Vec<String> = (0..97).map(text).collect();
    let mut first = Client::new(&served.url);
    let expected: Vec<Vec<u8>> = bodies
        .iter()
        .map(|body| {
            first.send(body);
            let (status, answer) = first.answer();
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
            answer
        })
        .collect();

    let (sent, answered, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let (refused, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let memory = Mutex::new(Vec::new());
    let start = Instant::now();
    let one = |client: &mut Client, i: usize| {
        // Some ask for nonsense, and some go away before the answer.
        match i % 500 {
            100 => {
                client.send(r#"{"inputs": 1}"#);
                let (status, _) = client.answer();
                wrong.fetch_add(usize::from(status != 422), Ordering::Relaxed);
                refused.fetch_add(1, Ordering::Relaxed);
            }
            200 => {
                client.send(&bodies[i % bodies.len()]);
                *client = Client::new(&served.url);
                left.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                client.send(&bodies[i % bodies.len()]);
                let right = client.answer() == (200, expected[i % bodies.len()].clone());
                wrong.fetch_add(usize::from(!right), Ordering::Relaxed);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
        if i.is_multiple_of((requests / LOOKS).max(1)) {
            memory.lock().unwrap().push(served.resident_mb());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = Client::new(&served.url);
                loop {
                    let i = sent.fetch_add(1, Ordering::Relaxed);
                    if i >= requests {
                        return;
                    }
                    one(&mut client, i);
                }
            });
        }
    });
    let took = start.elapsed().as_secs_f64();
    let memory = memory.into_inner().unwrap();
    let quarter = memory.len() / 4;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (before, after) = (mean(&memory[..quarter]), mean(&memory[memory.len() - quarter..]));
    let [answered, wrong, refused, left] = [answered, wrong, refused, left].map(AtomicUsize::into_inner);
    println!(
        "soak: {answered} answered, {refused} refused as they should be, {left} left early, {wrong} wrong; {took:.0} s, \
         {:.0} a second; {before:.1} MB in the first quarter, {after:.1} in the last",
        requests as f64 / took
    );
    assert_eq!((wrong, answered + refused + left), (0, requests));
    assert!(after < before + 8.0, "memory grew: {memory:.1?}");
    assert_eq!(served.end("-TERM").0, Some(0));
}
