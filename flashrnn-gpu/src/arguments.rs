//! Kernel arguments, declared once in Rust and printed in the language of the kernels.
//!
//! [`arguments!`](crate::arguments!) defines a struct that is copied to the device byte by byte. A
//! [`Struct`] records its fields and prints the same struct as CUDA C++ or WGSL, so the order of
//! the fields is written only once.
//!
//! ```
//! flashrnn_gpu::arguments! {
//!     /// The arguments of a kernel.
//!     pub struct Call {
//!         /// Number of steps.
//!         steps: i32,
//!         clip: f32,
//!         /// `[B, N, D]`, or 0 if there is none.
//!         h: u64 as "const float*",
//!     }
//! }
//!
//! assert_eq!(
//!     Call::STRUCT.cuda(),
//!     "struct Call {
//!     int steps;
//!     float clip;
//!     const float* h;
//! };
//! static_assert(sizeof(Call) == 16, \"Call differs from its Rust struct\");
//! "
//! );
//! ```

use std::fmt::Write;

/// Describes a field of an argument struct.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The field's name, in Rust and in the kernels.
    pub name: &'static str,
    /// The field's type: the name of a Rust type, or the type in the language of the kernels.
    pub ty: &'static str,
    /// Offset from the start of the struct in bytes.
    pub offset: usize,
}

/// Describes the layout of an argument struct.
#[derive(Clone, Copy, Debug)]
pub struct Struct {
    /// The struct's name, in Rust and in the kernels.
    pub name: &'static str,
    /// The size in bytes.
    pub bytes: usize,
    /// The fields, in memory order.
    pub fields: &'static [Field],
}

impl Struct {
    /// Prints the struct as CUDA C++, with a check of its size.
    #[must_use]
    pub fn cuda(&self) -> String {
        let Self { name, bytes, fields } = self;
        let mut text = format!("struct {name} {{\n");
        for Field { name, ty, .. } in *fields {
            let ty = match *ty {
                "i32" => "int",
                "u32" => "unsigned",
                "f32" => "float",
                other => other,
            };
            let _ = writeln!(text, "    {ty} {name};");
        }
        let _ = writeln!(text, "}};");
        let message = format!("\"{name} differs from its Rust struct\"");
        let _ = writeln!(text, "static_assert(sizeof({name}) == {bytes}, {message});");
        text
    }

    /// Prints checks in CUDA C++ for a struct that the kernels define themselves, as the C++ type
    /// `ty`. They check its size and the offset of each field.
    #[must_use]
    pub fn cuda_checks(&self, ty: &str) -> String {
        let Self { name, bytes, fields } = self;
        let message = format!("\"{name} differs from its Rust struct\"");
        let mut text = format!("static_assert(sizeof({ty}) == {bytes}, {message});\n");
        for Field { name, offset, .. } in *fields {
            // NVRTC has no `offsetof`. This is how CUDA's compilers define it.
            let check = format!("__INTADDR__(&(({ty}*)0)->{name}) == {offset}");
            let _ = writeln!(text, "static_assert({check}, {message});");
        }
        text
    }

    /// Prints the struct as WGSL, which has the same names `i32`, `u32` and `f32`.
    #[must_use]
    pub fn wgsl(&self) -> String {
        let mut text = format!("struct {} {{\n", self.name);
        for Field { name, ty, .. } in self.fields {
            let _ = writeln!(text, "    {name}: {ty},");
        }
        text.push_str("}\n");
        text
    }
}

/// Defines a `#[repr(C)]` struct of kernel arguments with a constant `STRUCT` of type
/// [`Struct`](crate::arguments::Struct).
///
/// A field may be an `i32`, a `u32`, an `f32` or another such struct. Any other type must be a
/// single identifier, followed by its name in the language of the kernels, as in
/// `h: u64 as "const float*"`. The struct must have no padding, which the derived `Pod` checks. The
/// calling crate must depend on bytemuck with the feature `derive`.
#[macro_export]
macro_rules! arguments {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[$field_meta:meta])* $field:ident: $ty:ident $(as $spelled:literal)?,)*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, ::bytemuck::Pod, ::bytemuck::Zeroable)]
        $vis struct $name {
            $($(#[$field_meta])* pub $field: $ty,)*
        }

        impl $name {
            /// The layout, for the kernels.
            pub const STRUCT: $crate::arguments::Struct = $crate::arguments::Struct {
                name: stringify!($name),
                bytes: size_of::<$name>(),
                fields: &[$($crate::arguments::Field {
                    name: stringify!($field),
                    ty: $crate::arguments!(@spelled $ty $($spelled)?),
                    offset: ::core::mem::offset_of!($name, $field),
                }),*],
            };
        }
    };
    (@spelled $ty:ident) => { stringify!($ty) };
    (@spelled $ty:ident $spelled:literal) => { $spelled };
}

#[cfg(test)]
mod tests {
    arguments! {
        /// Two fields.
        struct Pair {
            first: i32,
            second: f32,
        }
    }

    arguments! {
        /// One field of each kind.
        struct Call {
            pair: Pair,
            wx: u64 as "const T*",
            count: u32,
            flags: u32,
        }
    }

    #[test]
    fn structs_are_printed_in_both_languages() {
        assert_eq!(Pair::STRUCT.wgsl(), "struct Pair {\n    first: i32,\n    second: f32,\n}\n");
        assert_eq!(
            Call::STRUCT.cuda(),
            "struct Call {
    Pair pair;
    const T* wx;
    unsigned count;
    unsigned flags;
};
static_assert(sizeof(Call) == 24, \"Call differs from its Rust struct\");
"
        );
        let offsets: Vec<_> = Call::STRUCT.fields.iter().map(|field| field.offset).collect();
        assert_eq!(offsets, [0, 8, 16, 20]);
    }

    #[test]
    fn structs_of_the_kernels_are_checked() {
        assert_eq!(
            Pair::STRUCT.cuda_checks("Two<T>"),
            "static_assert(sizeof(Two<T>) == 8, \"Pair differs from its Rust struct\");
static_assert(__INTADDR__(&((Two<T>*)0)->first) == 0, \"Pair differs from its Rust struct\");
static_assert(__INTADDR__(&((Two<T>*)0)->second) == 4, \"Pair differs from its Rust struct\");
"
        );
    }
}
