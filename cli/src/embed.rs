//! `fbgemm embed`: a text a line in, a vector a line out.

use crate::Exit;
use crate::stdio::{complain, unless_closed};
use fbgemm::LinearScheme;
use fbgemm_encoder::{Encoder, EncoderOptions, Pooling};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// What to embed, with what, and how to print it.
#[derive(clap::Args)]
pub struct Embed {
    /// The model's folder: config.json, tokenizer.json, model.safetensors (in floats, or quantized by `fbgemm
    /// quantize`), and sentence-transformers' modules.json where there is one; or a folder of a Hugging Face cache
    model: PathBuf,
    /// A text a line, in UTF-8 (`-`: standard input)
    #[arg(default_value = "-")]
    file: PathBuf,
    /// json: an array of numbers a line; npy: one array of all, as numpy.load reads
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
    /// The linear layers that the file has in floats: accurate, portable, pytorch, fp16, or `stored` to leave them
    #[arg(long, value_name = "NAME", default_value = "accurate", value_parser = scheme)]
    scheme: Scheme,
    /// mean, cls or max, whatever the folder says
    #[arg(long, value_name = "NAME", value_parser = pooling)]
    pooling: Option<Pooling>,
    /// Scale vectors to length 1, whatever the folder says
    #[arg(long, value_name = "true|false")]
    normalize: Option<bool>,
    /// Cut texts behind so many tokens, whatever the folder says
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Of the folder's prompts the one to put before each text, instead of its default one; '' for none
    #[arg(long, value_name = "NAME")]
    prompt: Option<String>,
    /// How many threads share the work
    #[arg(long, value_name = "N", default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Json,
    Npy,
}

/// None leaves the layers.
#[derive(Clone)]
pub struct Scheme(pub Option<LinearScheme>);

pub fn scheme(text: &str) -> Result<Scheme, String> {
    match text {
        "stored" => Ok(Scheme(None)),
        _ => text.parse().map(|scheme| Scheme(Some(scheme))).map_err(|e: fbgemm::Error| format!("{e}, or stored")),
    }
}

pub fn pooling(text: &str) -> Result<Pooling, String> {
    match text {
        "mean" => Ok(Pooling::Mean),
        "cls" => Ok(Pooling::Cls),
        "max" => Ok(Pooling::Max),
        _ => Err("expected mean, cls or max".to_string()),
    }
}

/// Why it ended early.
enum Stop {
    Model(fbgemm_encoder::Error),
    Input(String),
    Output(io::Error),
}

impl From<fbgemm_encoder::Error> for Stop {
    fn from(error: fbgemm_encoder::Error) -> Self {
        Self::Model(error)
    }
}

pub fn run(arguments: &Embed) -> io::Result<Exit> {
    if let Err(e) = fbgemm::cpu_support() {
        return Ok(Exit::refused(&e));
    }
    match embed(arguments) {
        Ok(()) => Ok(Exit::Done),
        Err(Stop::Model(fbgemm_encoder::Error::Fbgemm(e))) => Ok(Exit::refused(&e)),
        Err(Stop::Model(e)) => {
            complain!("error: {e}");
            Ok(Exit::BadInput)
        }
        Err(Stop::Input(message)) => {
            complain!("error: {message}");
            Ok(Exit::BadInput)
        }
        // A reader that wants no more: there is nothing left to do.
        Err(Stop::Output(e)) => unless_closed(Err(e)).map(|()| Exit::Done),
    }
}

fn embed(arguments: &Embed) -> Result<(), Stop> {
    /// Enough for every thread, few enough to be soon done.
    const LINES: usize = 512;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(arguments.threads.max(1)).build();
    let pool = pool.map_err(|e| Stop::Input(format!("threads: {e}")))?;
    let encoder = open(arguments)?;
    let (mut lines, bytes) = input(&arguments.file)?;
    let bar = progress_bar(bytes);
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut texts, mut count, mut all) = (Vec::with_capacity(LINES), 0, Vec::new());
    loop {
        texts.clear();
        let mut read = 0;
        while texts.len() < LINES {
            match line(&mut lines, count + texts.len(), &arguments.file)? {
                Some((text, bytes)) => {
                    read += bytes;
                    texts.push(text);
                }
                None => break,
            }
        }
        if texts.is_empty() {
            break;
        }
        let vectors = pool.install(|| encoder.embed(&texts))?;
        count += texts.len();
        bar.inc(read as u64);
        bar.set_message(format!("{count} texts"));
        match arguments.format {
            Format::Json => vectors.chunks_exact(encoder.outputs()).try_for_each(|vector| {
                serde_json::to_writer(&mut out, vector)?;
                out.write_all(b"\n")
            }),
            Format::Npy => {
                all.extend(vectors);
                Ok(())
            }
        }
        .and_then(|()| out.flush())
        .map_err(Stop::Output)?;
    }
    bar.finish_and_clear();
    if arguments.format == Format::Npy {
        write_npy(&mut out, &all, count, encoder.outputs()).map_err(Stop::Output)?;
    }
    Ok(())
}

fn open(arguments: &Embed) -> Result<Encoder, Stop> {
    let mut options = encoder_options(&arguments.scheme, arguments.pooling, arguments.max_tokens);
    if let Some(normalize) = arguments.normalize {
        options = options.normalize(normalize);
    }
    if let Some(name) = &arguments.prompt {
        options = options.prompt(name);
    }
    Ok(Encoder::open(&arguments.model, &options)?)
}

/// How the commands that run an encoder open it.
pub fn encoder_options(scheme: &Scheme, pooling: Option<Pooling>, max_tokens: Option<usize>) -> EncoderOptions {
    let mut options = EncoderOptions::new();
    options = match scheme.0 {
        Some(scheme) => options.scheme(scheme),
        None => options.as_stored(),
    };
    if let Some(pooling) = pooling {
        options = options.pooling(pooling);
    }
    if let Some(tokens) = max_tokens {
        options = options.max_tokens(tokens);
    }
    options
}

/// What to read lines from, and how many bytes it has, where that is known.
fn input(file: &Path) -> Result<(Box<dyn BufRead>, Option<u64>), Stop> {
    if file == Path::new("-") {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let refused = |e: io::Error| Stop::Input(format!("{}: {e}", file.display()));
    let opened = File::open(file).map_err(refused)?;
    let about = opened.metadata().map_err(refused)?;
    Ok((Box::new(BufReader::new(opened)), about.is_file().then_some(about.len())))
}

/// The next line without its end, and how many bytes it took; nothing behind the last.
fn line(lines: &mut dyn BufRead, number: usize, file: &Path) -> Result<Option<(String, usize)>, Stop> {
    /// More than any model reads.
    const LONGEST: u64 = 64 << 20;
    let refused = |e: &dyn std::fmt::Display| Stop::Input(format!("{}, line {}: {e}", file.display(), number + 1));
    let mut bytes = Vec::new();
    let read = lines.take(LONGEST).read_until(b'\n', &mut bytes).map_err(|e| refused(&e))?;
    if read as u64 == LONGEST {
        return Err(refused(&"longer than 64 MiB"));
    }
    if read == 0 {
        return Ok(None);
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        bytes.pop_if(|last| *last == b'\r');
    }
    String::from_utf8(bytes).map(|text| Some((text, read))).map_err(|e| refused(&e.utf8_error()))
}

/// Only on a terminal: indicatif hides it elsewhere.
fn progress_bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{msg:16} {bar:30} {bytes}/{total_bytes} {eta}"),
        None => (ProgressBar::new_spinner(), "{msg:16} {elapsed}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("a fixed template"))
}

/// numpy's own format, version 1: a header that ends at a multiple of 64 bytes, then the numbers.
fn write_npy(out: &mut impl Write, values: &[f32], rows: usize, columns: usize) -> io::Result<()> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    const BEFORE: usize = b"\x93NUMPY\x01\x00".len() + 2;
    let padding = (BEFORE + header.len() + 1).next_multiple_of(64) - (BEFORE + header.len() + 1);
    header += &" ".repeat(padding);
    header.push('\n');
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    values.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?;
    out.flush()
}
