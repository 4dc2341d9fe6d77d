//! Draws a run: speed-up, time and error, embedding tables, recurrent layers and the encoder, each as SVG.

mod axes;
mod labels;
mod marks;
mod panels;
mod pictures;
mod svg;
#[cfg(test)]
mod tests;

use super::result::{Case, EncoderRun, Run};
use marks::Drawing;
use pictures::{encoder, error, recurrent, speed_up, tables, time};
use std::path::{Path, PathBuf};
use std::{fs, process};

/// Draws `run` into `folder`, which it makes where there is none, and returns the files.
///
/// `speed-up` needs a contender in fp32, `tables` and `recurrent` a preset that has them; without those they are left out.
pub fn draw(run: &Run, folder: &Path) -> Result<Vec<PathBuf>, String> {
    let cases: Vec<&Case> = run.cases.iter().filter(|case| !case.timings.is_empty()).collect();
    if cases.is_empty() {
        return Err("there is nothing to draw: no case was timed".to_string());
    }
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let drawings = [
        ("speed-up", speed_up(run, &cases)),
        ("time", Some(time(run, &cases))),
        ("error", Some(error(run, &cases))),
        ("tables", tables(run)),
        ("recurrent", recurrent(run)),
    ];
    let mut files = Vec::new();
    for (name, drawing) in drawings {
        let Some(drawing) = drawing else { continue };
        files.push(write(&drawing, name, folder)?);
    }
    Ok(files)
}

/// Draws an encoder's run into `folder`, and returns the file.
pub fn draw_encoder(run: &EncoderRun, folder: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    write(&encoder(run).ok_or("there is nothing to draw: no case was timed")?, "encoder", folder)
}

fn write(drawing: &Drawing, name: &str, folder: &Path) -> Result<PathBuf, String> {
    let file = folder.join(format!("{name}.svg"));
    // Renamed when whole, so that nobody ever reads half a picture.
    let part = folder.join(format!(".{name}.svg.{}", process::id()));
    let written = fs::write(&part, drawing.svg()).and_then(|()| fs::rename(&part, &file));
    if let Err(e) = written {
        let _ = fs::remove_file(&part); // the first error is the one to tell
        return Err(format!("{}: {e}", file.display()));
    }
    Ok(file)
}
