//! Texts of all requests, gathered into batches for the compute threads.
//!
//! There is no padding, and a text's vector is the same in every batch, so that a batch is whatever waits: the oldest
//! texts first, up to a number of tokens.

use crate::metrics::Metrics;
use fbgemm_encoder::{Encoder, Tokens};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What the compute threads run.
pub(crate) trait Compute: Send + Sync + 'static {
    /// The length of a vector.
    fn outputs(&self) -> usize;
    /// A vector for each text.
    fn compute(&self, tokens: &Tokens, output: &mut [f32]) -> Result<(), String>;
}

impl Compute for Encoder {
    fn outputs(&self) -> usize {
        Encoder::outputs(self)
    }

    fn compute(&self, tokens: &Tokens, output: &mut [f32]) -> Result<(), String> {
        self.embed_tokens(tokens, output).map_err(|e| e.chain())
    }
}

/// How to gather.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub threads: usize,
    /// A batch has at most so many, unless a single text has more.
    pub batch_tokens: usize,
    /// How long a text may wait for others to fill a batch.
    pub fill: Duration,
    /// How many texts can wait.
    pub queue_texts: usize,
    /// How long a text may wait at all.
    pub deadline: Duration,
}

/// The vectors of a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub vectors: Vec<f32>,
    /// From the request's arrival to its first batch.
    pub queued: Duration,
    /// From its first batch to the end of its last.
    pub computed: Duration,
}

/// Why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// More texts would wait than can.
    Full,
    /// It waited too long.
    Late,
    /// The service is about to end.
    Closed,
    /// The model refused, or panicked.
    Model(String),
}

/// The queue and the threads that empty it. Dropped, it takes no more, finishes what waits, and ends its threads.
#[derive(Debug)]
pub(crate) struct Gatherer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
    arrived: Condvar,
    alive: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    texts: VecDeque<Text>,
    tokens: usize,
    closed: bool,
}

/// A text of a request.
#[derive(Debug, Clone)]
struct Text {
    request: Arc<Request>,
    index: usize,
}

impl Text {
    fn tokens(&self) -> usize {
        self.request.tokens.ids(self.index).len()
    }
}

#[derive(Debug)]
struct Request {
    tokens: Tokens,
    arrived: Instant,
    /// No one waits for the answer any more.
    dropped: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    vectors: Vec<f32>,
    left: usize,
    started: Option<Instant>,
    /// Gone once it is answered.
    reply: Option<oneshot::Sender<Result<Answer, Failure>>>,
}

impl Request {
    fn is_over(&self) -> bool {
        self.dropped.load(Ordering::Relaxed) || lock(&self.progress).reply.is_none()
    }

    fn fail(&self, failure: Failure) {
        if let Some(reply) = lock(&self.progress).reply.take() {
            let _ = reply.send(Err(failure)); // it may have been dropped meanwhile
        }
    }

    fn finish(&self, index: usize, vector: &[f32], started: Instant) {
        let mut progress = lock(&self.progress);
        progress.vectors[index * vector.len()..][..vector.len()].copy_from_slice(vector);
        progress.left -= 1;
        let first = *progress.started.get_or_insert(started);
        if progress.left == 0
            && let Some(reply) = progress.reply.take()
        {
            let vectors = std::mem::take(&mut progress.vectors);
            let _ = reply.send(Ok(Answer { vectors, queued: first - self.arrived, computed: first.elapsed() }));
        }
    }
}

/// Takes a request's texts out of the queue when the one who asked goes away.
struct Waiting<'a> {
    shared: &'a Shared,
    request: Arc<Request>,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.request.dropped.store(true, Ordering::Relaxed);
        let mut queue = lock(&self.shared.queue);
        let before = queue.texts.len();
        queue.texts.retain(|text| !Arc::ptr_eq(&text.request, &self.request));
        queue.tokens = queue.texts.iter().map(Text::tokens).sum();
        self.shared.metrics.queue(queue.texts.len());
        self.shared.metrics.cancelled_texts(before - queue.texts.len());
    }
}

impl Gatherer {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where the system has no more threads.
    pub(crate) fn start(model: Arc<impl Compute>, limits: Limits, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            limits,
            metrics,
            queue: Mutex::default(),
            arrived: Condvar::new(),
            alive: AtomicUsize::new(limits.threads),
        });
        let gatherer = Self { shared: shared.clone(), threads: Mutex::default() };
        for number in 0..limits.threads {
            let (shared, model) = (shared.clone(), model.clone());
            let thread = std::thread::Builder::new().name(format!("fbgemm-{number}"));
            lock(&gatherer.threads).push(thread.spawn(move || {
                // Not even a panic outside the model goes unseen: health says so.
                let alive = Alive(&shared);
                // This thread alone, where the model would ask for others.
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
                if let Err(e) = &pool {
                    tracing::error!(error = %e, "a compute thread has no pool of its own");
                }
                Worker::new(&shared, &*model).run();
                drop(alive);
            })?);
        }
        Ok(gatherer)
    }

    /// How many threads compute, of those that should.
    pub(crate) fn alive(&self) -> (usize, usize) {
        (self.shared.alive.load(Ordering::Relaxed), self.shared.limits.threads)
    }

    /// The texts' vectors, one behind the other. Dropping the future takes them out of the queue.
    pub(crate) async fn run(&self, tokens: Tokens, outputs: usize) -> Result<Answer, Failure> {
        let count = tokens.texts();
        if count == 0 {
            return Ok(Answer { vectors: Vec::new(), queued: Duration::ZERO, computed: Duration::ZERO });
        }
        let (reply, answer) = oneshot::channel();
        let vectors = vec![0.0; count * outputs];
        let progress = Progress { vectors, left: count, started: None, reply: Some(reply) };
        let many = tokens.len() > self.shared.limits.batch_tokens;
        let request = Arc::new(Request {
            tokens,
            arrived: Instant::now(),
            dropped: AtomicBool::new(false),
            progress: Mutex::new(progress),
        });
        {
            let mut queue = lock(&self.shared.queue);
            if queue.closed {
                return Err(Failure::Closed);
            }
            if queue.texts.len() + count > self.shared.limits.queue_texts {
                return Err(Failure::Full);
            }
            queue.texts.extend((0..count).map(|index| Text { request: request.clone(), index }));
            queue.tokens += request.tokens.len();
            self.shared.metrics.queue(queue.texts.len());
        }
        if many {
            self.shared.arrived.notify_all();
        } else {
            self.shared.arrived.notify_one();
        }
        let mut waiting = Waiting { shared: &self.shared, request, answered: false };
        // Where the threads are all busy with other texts, no one else would say that it is late.
        let answer = match tokio::time::timeout(self.shared.limits.deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::Model("a compute thread ended without an answer".to_string())),
            Err(_) => return Err(Failure::Late),
        };
        waiting.answered = true;
        answer
    }

    fn close(&self) {
        lock(&self.shared.queue).closed = true;
        self.shared.arrived.notify_all();
    }
}

impl Drop for Gatherer {
    fn drop(&mut self) {
        self.close();
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join(); // what it panicked with was printed
        }
    }
}

/// A thread that computes.
struct Alive<'a>(&'a Shared);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::Relaxed);
        if std::thread::panicking() {
            tracing::error!("a compute thread has ended by a panic");
        }
    }
}

/// What a thread works with, kept from batch to batch.
struct Worker<'a, M: ?Sized> {
    shared: &'a Shared,
    model: &'a M,
    batch: Vec<Text>,
    tokens: Tokens,
    output: Vec<f32>,
}

impl<'a, M: Compute + ?Sized> Worker<'a, M> {
    fn new(shared: &'a Shared, model: &'a M) -> Self {
        Self { shared, model, batch: Vec::new(), tokens: Tokens::new(), output: Vec::new() }
    }

    fn run(mut self) {
        while self.gather() {
            let batch = std::mem::take(&mut self.batch);
            let started = Instant::now();
            match self.compute(&batch) {
                Ok(()) => self.deliver(&batch, started),
                // One of them is to blame: the others are not to suffer.
                Err(_) if batch.len() > 1 => {
                    for text in &batch {
                        match self.compute(std::slice::from_ref(text)) {
                            Ok(()) => self.deliver(std::slice::from_ref(text), started),
                            Err(message) => text.request.fail(Failure::Model(message)),
                        }
                    }
                }
                Err(message) => batch[0].request.fail(Failure::Model(message)),
            }
            self.batch = batch;
            self.batch.clear();
        }
    }

    /// The next batch; false when there will be none.
    fn gather(&mut self) -> bool {
        let Limits { batch_tokens, fill, deadline, .. } = self.shared.limits;
        let mut queue = lock(&self.shared.queue);
        loop {
            let Some(first) = queue.texts.front() else {
                if queue.closed {
                    return false;
                }
                queue = self.shared.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = fill.saturating_sub(first.request.arrived.elapsed());
            if !queue.closed && queue.tokens < batch_tokens && !left.is_zero() {
                queue = self.shared.arrived.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let (mut tokens, now) = (0, Instant::now());
            while let Some(text) = queue.texts.front() {
                let more = text.tokens();
                if !self.batch.is_empty() && tokens + more > batch_tokens {
                    break;
                }
                let text = queue.texts.pop_front().expect("seen above");
                queue.tokens -= more;
                if text.request.is_over() {
                    continue;
                }
                if now - text.request.arrived > deadline {
                    text.request.fail(Failure::Late);
                    continue;
                }
                tokens += more;
                self.batch.push(text);
            }
            self.shared.metrics.queue(queue.texts.len());
            if !self.batch.is_empty() {
                return true;
            }
        }
    }

    /// The batch's vectors, to the output.
    fn compute(&mut self, batch: &[Text]) -> Result<(), String> {
        self.tokens.clear();
        for text in batch {
            let tokens = &text.request.tokens;
            self.tokens.push(tokens.ids(text.index), tokens.segments(text.index));
        }
        self.output.resize(batch.len() * self.model.outputs(), 0.0);
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.model.compute(&self.tokens, &mut self.output)));
        self.shared.metrics.batch(batch.len(), self.tokens.len(), started.elapsed());
        match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(message)) => {
                tracing::error!(texts = batch.len(), error = message, "the model refused a batch");
                Err(message)
            }
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(ToString::to_string);
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                self.shared.metrics.panicked();
                tracing::error!(texts = batch.len(), panic = text, "the model panicked on a batch");
                Err(format!("the model panicked: {text}"))
            }
        }
    }

    fn deliver(&self, batch: &[Text], started: Instant) {
        for (text, vector) in batch.iter().zip(self.output.chunks_exact(self.model.outputs())) {
            text.request.finish(text.index, vector, started);
        }
    }
}

/// Nothing that these mutexes guard is left half changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Gives each text its first token, when it is let; token 13 panics, token 14 is refused.
    struct Echo {
        batches: Mutex<Vec<Vec<u32>>>,
        gate: Mutex<Option<mpsc::Receiver<()>>>,
    }

    impl Compute for Echo {
        fn outputs(&self) -> usize {
            1
        }

        fn compute(&self, tokens: &Tokens, output: &mut [f32]) -> Result<(), String> {
            if let Some(gate) = &*lock(&self.gate) {
                let _ = gate.recv();
            }
            let firsts: Vec<u32> = (0..tokens.texts()).map(|text| tokens.ids(text)[0]).collect();
            lock(&self.batches).push(firsts.clone());
            assert!(!firsts.contains(&13), "thirteen");
            if firsts.contains(&14) {
                return Err("fourteen".to_string());
            }
            output.iter_mut().zip(firsts).for_each(|(output, first)| *output = first as f32);
            Ok(())
        }
    }

    const LIMITS: Limits =
        Limits { threads: 1, batch_tokens: 4, fill: Duration::ZERO, queue_texts: 8, deadline: Duration::from_secs(20) };

    fn tokens(texts: &[&[u32]]) -> Tokens {
        let mut tokens = Tokens::new();
        texts.iter().for_each(|ids| tokens.push(ids, &vec![0; ids.len()]));
        tokens
    }

    /// A gatherer whose model waits for a word before each batch.
    fn gated(limits: Limits) -> (Arc<Echo>, Arc<Gatherer>, mpsc::Sender<()>, Arc<Metrics>) {
        let (open, gate) = mpsc::channel();
        let model = Arc::new(Echo { batches: Mutex::default(), gate: Mutex::new(Some(gate)) });
        let metrics = Arc::new(Metrics::new());
        let gatherer = Gatherer::start(model.clone(), limits, metrics.clone()).unwrap();
        (model, Arc::new(gatherer), open, metrics)
    }

    type Asked = tokio::task::JoinHandle<Result<Answer, Failure>>;

    /// Asks, and waits until the texts are in the queue or in a batch.
    async fn ask(gatherer: &Arc<Gatherer>, texts: &[&[u32]]) -> Asked {
        let (gatherer, tokens) = (gatherer.clone(), tokens(texts));
        let asked = tokio::spawn(async move { gatherer.run(tokens, 1).await });
        tokio::time::sleep(Duration::from_millis(30)).await;
        asked
    }

    fn waiting(gatherer: &Gatherer) -> usize {
        lock(&gatherer.shared.queue).texts.len()
    }

    #[tokio::test]
    async fn requests_share_batches_up_to_the_tokens() {
        let (model, gatherer, open, _) = gated(LIMITS);
        let mut asked = Vec::new();
        for texts in [&[&[1u32][..]][..], &[&[2, 0], &[3]], &[&[4]], &[&[5, 0, 0, 0, 0, 0]], &[&[6]]] {
            asked.push(ask(&gatherer, texts).await);
        }
        drop(open);
        let mut vectors = Vec::new();
        for asked in asked {
            vectors.push(asked.await.unwrap().unwrap().vectors);
        }
        assert_eq!(vectors, [vec![1.0], vec![2.0, 3.0], vec![4.0], vec![5.0], vec![6.0]]);
        // The first went alone, as nothing else was there; the long one is more than a batch, and goes alone.
        assert_eq!(*lock(&model.batches), [vec![1], vec![2, 3, 4], vec![5], vec![6]]);
    }

    #[tokio::test]
    async fn a_batch_waits_to_be_filled_if_told_so() {
        let (model, gatherer, open, _) = gated(Limits { fill: Duration::from_secs(10), ..LIMITS });
        drop(open);
        let first = ask(&gatherer, &[&[1], &[2]]).await;
        assert_eq!(waiting(&gatherer), 2);
        let second = ask(&gatherer, &[&[3, 0]]).await;
        assert_eq!(first.await.unwrap().unwrap().vectors, [1.0, 2.0]);
        assert_eq!(second.await.unwrap().unwrap().vectors, [3.0]);
        assert_eq!(*lock(&model.batches), [vec![1, 2, 3]]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_leaves_the_others() {
        let (_, gatherer, open, _) = gated(LIMITS);
        let first = ask(&gatherer, &[&[1]]).await; // being computed
        let second = ask(&gatherer, &[&[2][..]; 8]).await;
        assert_eq!(ask(&gatherer, &[&[3]]).await.await.unwrap().unwrap_err(), Failure::Full);
        drop(open);
        assert_eq!(first.await.unwrap().unwrap().vectors, [1.0]);
        assert_eq!(second.await.unwrap().unwrap().vectors, [2.0; 8]);
    }

    #[tokio::test]
    async fn who_goes_away_leaves_the_queue() {
        let (model, gatherer, open, metrics) = gated(LIMITS);
        let first = ask(&gatherer, &[&[1]]).await;
        let second = ask(&gatherer, &[&[2], &[3]]).await;
        let third = ask(&gatherer, &[&[4]]).await;
        assert_eq!(waiting(&gatherer), 3);
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        assert_eq!(waiting(&gatherer), 1);
        drop(open);
        first.await.unwrap().unwrap();
        third.await.unwrap().unwrap();
        assert_eq!(*lock(&model.batches), [vec![1], vec![4]]);
        assert!(metrics.encode().contains("fbgemm_cancelled_texts_total 2"), "{}", metrics.encode());
    }

    #[tokio::test]
    async fn what_waits_too_long_is_late_and_not_computed() {
        let (model, gatherer, open, _) = gated(Limits { deadline: Duration::from_millis(100), ..LIMITS });
        let first = ask(&gatherer, &[&[1]]).await;
        let second = ask(&gatherer, &[&[2]]).await;
        assert_eq!(second.await.unwrap().unwrap_err(), Failure::Late);
        assert_eq!(first.await.unwrap().unwrap_err(), Failure::Late);
        drop(open);
        let third = ask(&gatherer, &[&[3]]).await;
        assert_eq!(third.await.unwrap().unwrap().vectors, [3.0]);
        assert_eq!(*lock(&model.batches), [vec![1], vec![3]]);
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_text_and_no_other() {
        let (_, gatherer, open, metrics) = gated(LIMITS);
        let first = ask(&gatherer, &[&[1]]).await;
        let good = ask(&gatherer, &[&[2]]).await;
        let panics = ask(&gatherer, &[&[13]]).await;
        let refused = ask(&gatherer, &[&[14]]).await;
        drop(open);
        assert_eq!(first.await.unwrap().unwrap().vectors, [1.0]);
        assert_eq!(good.await.unwrap().unwrap().vectors, [2.0]);
        let failure = panics.await.unwrap().unwrap_err();
        assert_eq!(failure, Failure::Model("the model panicked: thirteen".to_string()));
        assert_eq!(refused.await.unwrap().unwrap_err(), Failure::Model("fourteen".to_string()));
        let after = ask(&gatherer, &[&[7]]).await;
        assert_eq!(after.await.unwrap().unwrap().vectors, [7.0]);
        assert_eq!(gatherer.alive(), (1, 1));
        assert!(metrics.encode().contains("fbgemm_panics_total 2"), "in the batch, and alone: {}", metrics.encode());
    }

    #[tokio::test]
    async fn what_waits_is_finished_at_the_end_and_nothing_more_taken() {
        let (_, gatherer, open, _) = gated(LIMITS);
        let first = ask(&gatherer, &[&[1]]).await;
        let second = ask(&gatherer, &[&[2][..]; 6]).await;
        gatherer.close();
        assert_eq!(ask(&gatherer, &[&[3]]).await.await.unwrap().unwrap_err(), Failure::Closed);
        drop(open);
        assert_eq!(first.await.unwrap().unwrap().vectors, [1.0]);
        assert_eq!(second.await.unwrap().unwrap().vectors, [2.0; 6]);
        drop(gatherer); // joins the threads
    }
}
