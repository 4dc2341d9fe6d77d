//! Connections: accepted, timed out where a client is slow, and let finish at the end.

use crate::service::Service;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

/// Answers HTTP/1.1 on this listener until `shutdown` is done. Then no more connections are accepted, idle ones are
/// closed, and requests that are under way are answered, for as long as [`drain`](crate::ServiceOptions::drain) allows.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use fbgemm_serve::{EncoderOptions, Service, ServiceOptions, serve};
///
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
/// let service = Service::open("all-MiniLM-L6-v2", &EncoderOptions::new(), ServiceOptions::new())?;
/// serve(listener, service, std::future::pending()).await; // until the program ends
/// # Ok(()) }
/// ```
pub async fn serve(listener: TcpListener, service: Service, shutdown: impl Future<Output = ()>) {
    let options = service.options().clone();
    let router = TowerToHyperService::new(service.router());
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(options.head_timeout);
    // A request's head has at most so many bytes; more is answered with 431.
    builder.max_buf_size(64 << 10);
    let graceful = GracefulShutdown::new();
    let free = Arc::new(Semaphore::new(options.connections));
    let mut shutdown = pin!(shutdown);
    loop {
        let permit = tokio::select! {
            permit = free.clone().acquire_owned() => permit.expect("it is never closed"),
            () = &mut shutdown => break,
        };
        let (stream, client) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    after(&e).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        let _ = stream.set_nodelay(true); // an answer is one piece; without it is only later
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(options.write_timeout));
        let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), router.clone());
        let connection = graceful.watch(connection);
        let counted = service.metrics().connection();
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(%client, error = %e, "a connection ended early");
            }
            drop((counted, permit));
        });
    }
    drop(listener);
    service.end();
    let left = graceful.count();
    tracing::info!(connections = left, "ending: no more connections are accepted");
    match tokio::time::timeout(options.drain, graceful.shutdown()).await {
        Ok(()) => tracing::info!("all requests are answered"),
        Err(_) => tracing::warn!(after = ?options.drain, "some requests were still unanswered"),
    }
}

/// A client that went away at once is no matter; where there are no more file descriptors, waiting helps.
async fn after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    tracing::error!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(200)).await;
}
