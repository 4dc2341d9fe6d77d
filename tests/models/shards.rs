//! Models in several files: opened as one, and refused where a part is missing or stands for the whole.

use crate::{Tensor, floats, folder, pytorch, quantize, serialize, store, tensor, tensors_of};
use fbgemm::{Error, ModelFile};
use fbgemm_testkit::compare::bits;
use fbgemm_testkit::files::names_in;
use fbgemm_testkit::random::normal;
use safetensors::tensor::Dtype;
use serde_json::json;
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";

/// Layers with biases in another shard than their weights, an embedding, a norm.
fn tensors() -> Vec<Tensor> {
    let normal = |name: &str, shape: &[usize], seed| floats(name, shape, &normal(shape.iter().product(), seed, 1.0));
    vec![
        normal("embed_tokens.weight", &[60, 16], 1),
        normal("layers.0.fc.weight", &[24, 16], 2),
        normal("layers.1.fc.weight", &[8, 24], 3),
        normal("layers.0.fc.bias", &[24], 4),
        normal("layers.1.fc.bias", &[8], 5),
        normal("norm.weight", &[24], 6),
    ]
}

/// A folder with the tensors in three shards, biases apart from their weights, and an index of them.
fn sharded(name: &str) -> PathBuf {
    let folder = folder(name);
    let tensors = tensors();
    for (number, shard) in [&tensors[..2], &tensors[2..4], &tensors[4..]].into_iter().enumerate() {
        store(&folder.join(shard_name(number + 1)), shard);
    }
    index(&folder, &[&tensors[..2], &tensors[2..4], &tensors[4..]]);
    folder
}

fn shard_name(number: usize) -> String {
    format!("model-{number:05}-of-00003.safetensors")
}

fn index(folder: &Path, shards: &[&[Tensor]]) {
    let mut weight_map = serde_json::Map::new();
    for (number, shard) in shards.iter().enumerate() {
        weight_map.extend(shard.iter().map(|(name, ..)| (name.clone(), shard_name(number + 1).into())));
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    std::fs::write(folder.join(INDEX), index.to_string()).unwrap();
}

fn refused(path: impl AsRef<Path>) -> Error {
    ModelFile::open(path).map(drop).unwrap_err()
}

#[test]
fn a_model_in_shards_is_quantized_as_the_same_model_in_one_file() {
    let (model, beside) = (sharded("shards"), folder("shards-beside"));
    let [whole, expected, output] = ["whole", "expected", "output"].map(|name| beside.join(name));
    store(&whole, &tensors());
    quantize(&whole, &expected, &pytorch()).unwrap();
    // By the index, by its folder, and by the shards' names alone.
    for path in [model.join(INDEX), model.clone(), model.clone()] {
        quantize(&path, &output, &pytorch()).unwrap();
        assert_eq!(std::fs::read(&output).unwrap(), std::fs::read(&expected).unwrap(), "{path:?}");
        let layers = [&output, &expected].map(|path| ModelFile::open(path).unwrap().load_quantized(1).unwrap());
        for (name, layer) in &layers[0] {
            assert!(layer.bias().is_some(), "{name}");
            let input = normal(3 * layer.in_features(), 9, 1.0);
            let [a, b] = layers.each_ref().map(|layers| bits(&layers[name].forward(&input).unwrap()));
            assert_eq!(a, b, "{name}");
        }
        if path == model && model.join(INDEX).exists() {
            std::fs::remove_file(model.join(INDEX)).unwrap();
        }
    }
}

#[test]
fn the_folder_of_an_index_is_opened_by_it() {
    let folder = sharded("shards-folder");
    store(&folder.join("other.safetensors"), &tensors()[..1]);
    let file = ModelFile::open(&folder).unwrap();
    let mut names: Vec<String> = tensors().into_iter().map(|(name, ..)| name).collect();
    names.sort();
    assert_eq!(file.tensor_names(), names);
    let sizes = (1..=3).map(|number| folder.join(shard_name(number)).metadata().unwrap().len());
    assert_eq!(file.bytes(), sizes.sum::<u64>());
    // Two of them, or two models: which one is meant is not guessed.
    std::fs::copy(folder.join(INDEX), folder.join("other.safetensors.index.json")).unwrap();
    let said = refused(&folder).to_string();
    assert!(said.contains("several indices: model.safetensors.index.json, other.safetensors.index.json"), "{said}");
}

#[test]
fn a_folder_with_one_file_is_that_file_and_one_without_is_refused() {
    let folder = folder("shards-one");
    let said = refused(&folder).to_string();
    assert!(said.contains("has no .safetensors file and no index of shards"), "{said}");
    store(&folder.join("any.safetensors"), &tensors());
    assert_eq!(ModelFile::open(&folder).unwrap().tensor_names().len(), 6);
    store(&folder.join("other.safetensors"), &tensors());
    let said = refused(&folder).to_string();
    assert!(said.contains("several safetensors files: any.safetensors, other.safetensors; give one"), "{said}");
}

#[test]
fn missing_shards_are_named() {
    let missing = |missing: &str| Error::MissingShards { of: 3, missing: missing.to_string() };
    let folder = sharded("shards-missing");
    std::fs::remove_file(folder.join(shard_name(2))).unwrap();
    assert_eq!(refused(folder.join(INDEX)), missing(&shard_name(2)));
    assert_eq!(refused(&folder), missing(&shard_name(2)));
    // By their names alone; also where one alone is left.
    std::fs::remove_file(folder.join(INDEX)).unwrap();
    assert_eq!(refused(&folder), missing(&shard_name(2)));
    std::fs::remove_file(folder.join(shard_name(1))).unwrap();
    assert_eq!(refused(&folder), missing(&format!("{}, {}", shard_name(1), shard_name(2))));
}

#[test]
fn a_tensor_that_the_index_names_and_no_shard_has_is_named() {
    let folder = sharded("shards-tensor");
    let shard = folder.join(shard_name(3));
    store(&shard, &tensors()[5..]);
    assert_eq!(refused(&folder), Error::MissingTensor { name: "layers.1.fc.bias".to_string() });
}

#[test]
fn one_shard_alone_is_refused_by_its_name_its_metadata_or_an_index_beside_it() {
    let one_of = |path: &Path, says: &str| {
        let (path, says) = (path.display().to_string(), says.to_string());
        assert_eq!(refused(&path), Error::OneOfShards { path, says });
    };
    let folder = sharded("shards-alone");
    one_of(&folder.join(shard_name(2)), "its name says 2 of 3");
    for name in ["model_00001-of-00002.safetensors", "a.safetensors-1-of-7", "x-00003-of-00003.fp16.safetensors"] {
        store(&folder.join(name), &tensors());
        let Error::OneOfShards { says, .. } = refused(folder.join(name)) else { panic!("{name}") };
        assert!(says.starts_with("its name says"), "{says}");
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    let renamed = folder.join("renamed.safetensors");
    std::fs::write(&renamed, serialize(&tensors()[..2], &[("fbgemm_shard", "1/3")])).unwrap();
    one_of(&renamed, "its metadata says 1/3");
    let listed = folder.join("listed.safetensors");
    store(&listed, &tensors()[..2]);
    let map = json!({"a": "listed.safetensors", "b": "another.safetensors"});
    std::fs::write(folder.join(INDEX), json!({"weight_map": map}).to_string()).unwrap();
    one_of(&listed, "model.safetensors.index.json beside it names 2 files");
    // One of one is whole, whatever it is called.
    let whole = crate::folder("shards-whole").join("model-00001-of-00001.safetensors");
    std::fs::write(&whole, serialize(&tensors(), &[("fbgemm_shard", "1/1")])).unwrap();
    assert_eq!(ModelFile::open(&whole).unwrap().tensor_names().len(), 6);
}

#[test]
fn a_tensor_in_two_shards_names_both() {
    let folder = sharded("shards-twice");
    store(&folder.join(shard_name(3)), &tensors()[3..]);
    let (name, [first, second]) = ("layers.0.fc.bias".to_string(), [2, 3].map(shard_name));
    assert_eq!(refused(&folder), Error::NameClash { name, first, second });
}

#[test]
fn what_is_wrong_with_one_shard_names_it() {
    let folder = sharded("shards-wrong");
    std::fs::write(folder.join(shard_name(2)), "version https://git-lfs.github.com/spec/v1\noid sha256:0").unwrap();
    let said = refused(&folder).chain();
    assert!(said.starts_with("model-00002-of-00003.safetensors: this is a Git LFS pointer"), "{said}");
    let mut cut = serialize(&tensors()[2..4], &[]);
    cut.pop();
    std::fs::write(folder.join(shard_name(2)), cut).unwrap();
    let said = refused(&folder).chain();
    assert!(said.starts_with("model-00002-of-00003.safetensors: not a usable safetensors file: its tensors"), "{said}");
}

#[test]
fn an_index_leads_nowhere_but_to_files_beside_it() {
    let folder = folder("shards-paths");
    store(&folder.with_extension("outside.safetensors"), &tensors());
    let outside = folder.with_extension("outside.safetensors");
    for name in ["../shards-paths.outside.safetensors", outside.to_str().unwrap(), "..", "a/b", "./a/../b", ""] {
        let index = json!({"weight_map": {"a": name}}).to_string();
        std::fs::write(folder.join(INDEX), index).unwrap();
        let said = refused(&folder).to_string();
        let expected = format!("the index names {name:?}, expected the name of a file beside it");
        assert!(said.contains(&expected), "{name}: {said}");
    }
    for (index, said) in [
        (json!({"weight_map": {}}), "names no file"),
        (json!({}), "is no index of shards: missing field `weight_map`"),
        (json!({"weight_map": {"a": 1}}), "is no index of shards: invalid type"),
    ] {
        std::fs::write(folder.join(INDEX), index.to_string()).unwrap();
        let error = refused(&folder).to_string();
        assert!(error.contains(said) && error.contains(INDEX), "{error}");
    }
}

/// The files of a quantized model in shards, and the whole as one file.
fn written(name: &str, target: &str, most: u64) -> (PathBuf, Vec<PathBuf>, PathBuf) {
    let folder = folder(name);
    let (input, single) = (folder.join("in.safetensors"), folder.join("single.safetensors"));
    // A layer with its input's scheme and one in int8 of another tool, which metadata tells.
    let foreign = [tensor("left.weight", Dtype::I8, &[4, 8], vec![3; 32]), floats("left.weight_scale", &[1], &[0.5])];
    std::fs::write(&input, serialize(&[&tensors()[..], &foreign].concat(), &[("author", "someone")])).unwrap();
    let options = || {
        let scheme = fbgemm::Int8Scheme::accurate();
        fbgemm::CheckpointOptions::new(fbgemm::QuantizeOptions::new(scheme).exclude("left"))
    };
    quantize(&input, &single, &options()).unwrap();
    let target = folder.join(target);
    let report = quantize(&input, &target, &options().max_shard_size(most)).unwrap();
    std::fs::remove_file(&input).unwrap();
    (folder, report.files, single)
}

#[test]
fn shards_that_are_written_are_the_single_file_in_pieces() {
    for most in [1, 500, 1500, 4000] {
        let (folder, files, single) = written("shards-out", "out.safetensors", most);
        let (index, shards) = files.split_last().unwrap();
        assert!(shards.len() > 1, "{files:?}");
        assert_eq!(*index, folder.join("out.safetensors.index.json"));
        let mut there = names_in(&folder);
        there.retain(|name| name != "single.safetensors");
        let mut expected: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        expected.sort();
        assert_eq!(there, expected);

        let all = tensors_of(shards);
        assert_eq!(all, tensors_of(&[&single]));
        let (sharded, single) = (ModelFile::open(index).unwrap(), ModelFile::open(&single).unwrap());
        let names: Vec<&str> = sharded.quantized_layers().collect();
        assert_eq!(names, ["layers.0.fc", "layers.1.fc"]);
        for name in names {
            assert_eq!(sharded.portable(name).unwrap(), single.portable(name).unwrap(), "{name}");
        }
        let mut metadata = sharded.metadata().clone();
        metadata.remove("fbgemm_shard");
        assert_eq!(metadata, *single.metadata());
        assert_eq!((metadata["author"].as_str(), metadata["foreign:left"].as_str()), ("someone", "1"));

        // No larger than asked, but for one layer or tensor that is; a layer is never split.
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
        assert_eq!(written["metadata"]["total_size"], all.values().map(|(.., data)| data.len()).sum::<usize>());
        for shard in shards {
            let tensors = tensors_of(&[shard]);
            let bytes: usize = tensors.values().map(|(.., data)| data.len()).sum();
            let layers: std::collections::BTreeSet<_> =
                tensors.keys().map(|name| name.rsplit_once('.').unwrap().0).collect();
            assert!(bytes as u64 <= most || layers.len() == 1, "{shard:?}: {bytes} bytes, {layers:?}");
            for name in tensors.keys() {
                assert_eq!(written["weight_map"][name], shard.file_name().unwrap().to_str().unwrap());
            }
        }
        assert_eq!(written["weight_map"].as_object().unwrap().len(), all.len());
        let alone = refused(&shards[0]);
        assert!(matches!(alone, Error::OneOfShards { .. }), "{alone}");
    }
}

#[test]
fn what_fits_one_shard_is_one_file() {
    let (_, files, single) = written("shards-fit", "out.safetensors", 1 << 20);
    assert_eq!(files.len(), 1);
    assert_eq!(std::fs::read(&files[0]).unwrap(), std::fs::read(single).unwrap());
}

#[test]
fn a_folder_gets_the_names_that_libraries_look_for() {
    let folder = folder("shards-into");
    let (input, output) = (folder.join("in.safetensors"), folder.join("model"));
    std::fs::create_dir(&output).unwrap();
    store(&input, &tensors());
    quantize(&input, &output, &pytorch().max_shard_size(1500)).unwrap();
    let names = names_in(&output);
    assert!(names.len() > 2 && names.contains(&INDEX.to_string()), "{names:?}");
    assert_eq!(ModelFile::open(&output).unwrap().quantized_layers().len(), 2);
    let before = tensors_of(&[&folder.join("in.safetensors")]).len();
    assert_eq!(before, 6);
    // The index of before does not lead back to the old files.
    let report = quantize(&input, &output, &pytorch().linear("embed_tokens").max_shard_size(1 << 20)).unwrap();
    assert_eq!(report.files, [output.join("model.safetensors"), output.join(INDEX)]);
    assert_eq!(ModelFile::open(&output).unwrap().quantized_layers().len(), 3);
    // A folder takes no single file that was not asked for.
    let error = quantize(&input, &output, &pytorch()).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::IsADirectory), "{error}");
}

#[test]
fn names_that_can_not_be_opened_again_are_not_written() {
    let folder = sharded("shards-names");
    let input = folder.join(INDEX);
    let before = names_in(&folder);
    for (name, said) in [
        ("out-00001-of-00002.safetensors", "its name says 1 of 2"),
        ("out.safetensors.index.json", "the name of an index of shards"),
    ] {
        let error = quantize(&input, &folder.join(name), &pytorch()).unwrap_err().chain();
        assert!(error.contains(said), "{error}");
        assert_eq!(names_in(&folder), before);
    }
}

/// Shards that are replaced while they are read, by as many of the same names.
#[test]
fn a_model_in_shards_can_be_quantized_to_its_own_folder() {
    let folder = folder("shards-own");
    store(&folder.join("in.safetensors"), &tensors());
    let float = || pytorch().max_shard_size(1500);
    let expected = folder.join("expected.safetensors");
    quantize(&folder.join("in.safetensors"), &expected, &pytorch()).unwrap();
    let options = fbgemm::QuantizeOptions::new(fbgemm::Int8Scheme::pytorch()).exclude("layers.1.fc");
    let first = fbgemm::CheckpointOptions::from(options).max_shard_size(1500);
    let model = folder.join("model");
    std::fs::create_dir(&model).unwrap();
    quantize(&folder.join("in.safetensors"), &model, &first).unwrap();
    let report = quantize(&model, &model, &float()).unwrap();
    let (_, shards) = report.files.split_last().unwrap();
    assert_eq!(tensors_of(shards), tensors_of(&[&expected]));
    assert_eq!(ModelFile::open(&model).unwrap().quantized_layers().len(), 2);
}

/// More than a process may have open: they are opened when they are read, and what is written is closed.
#[test]
fn a_model_in_very_many_shards_is_read_and_written() {
    let folder = folder("shards-many");
    let model = folder.join("model");
    std::fs::create_dir(&model).unwrap();
    let count = 150;
    let layers: Vec<Tensor> =
        (0..count).map(|i| floats(&format!("{i:03}.weight"), &[2, 2], &normal(4, i, 1.0))).collect();
    for (i, layer) in layers.iter().enumerate() {
        store(&model.join(format!("model-{:05}-of-{count:05}.safetensors", i + 1)), &layers[i..=i]);
        assert_eq!(layer.0, format!("{i:03}.weight"));
    }
    store(&folder.join("whole.safetensors"), &layers);
    quantize(&folder.join("whole.safetensors"), &folder.join("expected.safetensors"), &pytorch()).unwrap();
    let file = ModelFile::open(&model).unwrap();
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let open =
        open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).filter(|path| path.starts_with(&model));
    assert_eq!(open.count(), 0);
    let options = pytorch().max_shard_size(1);
    let output = folder.join("out.safetensors");
    let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
    let report = fbgemm::quantize_checkpoint(&file, &options, Some(&output), go_on).unwrap();
    let (_, shards) = report.files.split_last().unwrap();
    assert_eq!(shards.len(), count as usize);
    assert_eq!(tensors_of(shards), tensors_of(&[folder.join("expected.safetensors")]));
    // One that changes meanwhile is seen all the same.
    let changed = model.join("model-00150-of-00150.safetensors");
    std::fs::write(&changed, "short").unwrap();
    let error = fbgemm::quantize_checkpoint(&file, &options, Some(&output), go_on).unwrap_err();
    assert_eq!(error, Error::InputChanged { path: changed.display().to_string() });
}
