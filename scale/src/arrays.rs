//! Arrow's arrays as the functions read and write them.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, PrimitiveArray};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{ArrowPrimitiveType, DataType, Field, FieldRef, Float32Type, Int64Type};
use datafusion::common::{Result, exec_datafusion_err, internal_err};
use std::ops::Range;
use std::sync::Arc;

/// Whether values of this type are texts: strings, or a dictionary of them.
pub(crate) fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => {
            matches!(**values, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        }
        _ => false,
    }
}

/// An array of texts: each row's is `texts[rows[row]]`, or null.
pub(crate) struct Texts<'a> {
    /// A dictionary's values, used or not; else a row's each.
    texts: Vec<Option<&'a str>>,
    /// None where each row is its own.
    rows: Option<Vec<Option<usize>>>,
}

impl<'a> Texts<'a> {
    pub(crate) fn new(array: &'a dyn Array) -> Result<Self> {
        let Some(dictionary) = array.as_any_dictionary_opt() else {
            return Ok(Self { texts: strings(array)?, rows: None });
        };
        let texts = strings(dictionary.values().as_ref())?;
        let keys = dictionary.keys();
        // One by one, as a key below a null may be anything.
        let keys64 = cast(keys, &DataType::UInt64)?;
        let keys64 = keys64.as_primitive::<datafusion::arrow::datatypes::UInt64Type>();
        let rows = keys64.iter().map(|key| key.map(|key| key as usize).filter(|&key| texts[key].is_some())).collect();
        Ok(Self { texts, rows: Some(rows) })
    }

    pub(crate) fn get(&self, row: usize) -> Option<&'a str> {
        match &self.rows {
            None => self.texts[row],
            Some(rows) => rows[row].and_then(|row| self.texts[row]),
        }
    }

    /// The texts without nulls, each of a dictionary's once, and which of them is each row's.
    pub(crate) fn distinct(&self) -> (Vec<&'a str>, Vec<Option<usize>>) {
        let mut texts = Vec::new();
        let Some(rows) = &self.rows else {
            let rows = self.texts.iter().map(|text| text.map(|text| (texts.push(text), texts.len() - 1).1)).collect();
            return (texts, rows);
        };
        let mut places: Vec<Option<usize>> = vec![None; self.texts.len()];
        let place = |&row: &Option<usize>| {
            let row = row?;
            let text = self.texts[row]?;
            Some(*places[row].get_or_insert_with(|| (texts.push(text), texts.len() - 1).1))
        };
        let rows = rows.iter().map(place).collect();
        (texts, rows)
    }
}

fn strings(array: &dyn Array) -> Result<Vec<Option<&str>>> {
    Ok(match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().collect(),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().collect(),
        DataType::Utf8View => array.as_string_view().iter().collect(),
        DataType::Null => vec![None; array.len()],
        other => return internal_err!("texts of type {other}"),
    })
}

/// Rows of numbers of any lengths.
pub(crate) struct Lists<T: ArrowPrimitiveType> {
    values: PrimitiveArray<T>,
    /// Each row's part of the values; none for null, and for a list with a null in it.
    rows: Vec<Option<Range<usize>>>,
}

/// Lists of features.
pub(crate) type Features = Lists<Float32Type>;

/// Lists of row numbers.
pub(crate) type Indices = Lists<Int64Type>;

impl<T: ArrowPrimitiveType> Lists<T> {
    pub(crate) fn new(array: &dyn Array) -> Result<Self> {
        let (values, ranges): (&ArrayRef, Vec<Range<usize>>) = match array.data_type() {
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let ranges = list.offsets().windows(2).map(|w| w[0] as usize..w[1] as usize).collect();
                (list.values(), ranges)
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                let ranges = list.offsets().windows(2).map(|w| w[0] as usize..w[1] as usize).collect();
                (list.values(), ranges)
            }
            DataType::FixedSizeList(..) => {
                let list = array.as_fixed_size_list();
                let length = list.value_length() as usize;
                let first = list.value_offset(0) as usize;
                (list.values(), (0..list.len()).map(|row| first + row * length..first + (row + 1) * length).collect())
            }
            other => return internal_err!("lists of type {other}"),
        };
        let values = values.as_primitive_opt::<T>().cloned();
        let values = values.ok_or_else(|| exec_datafusion_err!("lists of type {}", array.data_type()))?;
        let whole = |range: &Range<usize>| values.null_count() == 0 || range.clone().all(|i| values.is_valid(i));
        let rows = ranges.into_iter().enumerate();
        let rows = rows.map(|(row, range)| (array.is_valid(row) && whole(&range)).then_some(range)).collect();
        Ok(Self { values, rows })
    }

    /// Those that are not null, one behind the other.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Option<&[T::Native]>> {
        let values: &[T::Native] = self.values.values();
        self.rows.iter().map(move |row| row.clone().map(|range| &values[range]))
    }
}

/// The type of vectors of so many elements.
pub(crate) fn vector_type(outputs: usize) -> DataType {
    DataType::FixedSizeList(element(), outputs as i32)
}

fn element() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Float32, true))
}

/// Vectors, of `which` each row's is; null where it is none.
pub(crate) fn vectors(vectors: &[f32], which: &[Option<usize>], outputs: usize) -> Result<ArrayRef> {
    let mut values = Vec::with_capacity(which.len() * outputs);
    for which in which {
        match which {
            Some(which) => values.extend_from_slice(&vectors[which * outputs..][..outputs]),
            None => values.resize(values.len() + outputs, 0.0),
        }
    }
    let nulls = which.iter().any(Option::is_none).then(|| which.iter().map(Option::is_some).collect::<NullBuffer>());
    let values = Arc::new(Float32Array::from(values));
    Ok(Arc::new(FixedSizeListArray::try_new(element(), outputs as i32, values, nulls)?))
}

/// As [`vectors`], of one element each.
pub(crate) fn numbers(numbers: &[f32], which: &[Option<usize>]) -> ArrayRef {
    Arc::new(which.iter().map(|which| which.map(|which| numbers[which])).collect::<Float32Array>())
}

/// Columns as rows: null where any is.
pub(crate) fn rows_of(columns: &[ArrayRef]) -> Result<(Vec<f32>, Vec<bool>)> {
    let columns: Option<Vec<&Float32Array>> =
        columns.iter().map(|array| array.as_primitive_opt::<Float32Type>()).collect();
    let Some(columns) = columns else { return internal_err!("columns of features of another type than Float32") };
    let rows = columns.first().map_or(0, |column| column.len());
    let mut values = Vec::with_capacity(rows * columns.len());
    let mut valid = Vec::with_capacity(rows);
    for row in 0..rows {
        let whole = columns.iter().all(|column| column.is_valid(row));
        valid.push(whole);
        if whole {
            values.extend(columns.iter().map(|column| column.value(row)));
        }
    }
    Ok((values, valid))
}
