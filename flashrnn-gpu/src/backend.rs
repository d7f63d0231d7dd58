//! The parts of `Backend` that both GPU backends share.

use flashrnn_core::{Dtype, Element, Error, Result};

/// The element types that GPU backends support.
pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// Checks the element types of a plan. `T` must be one of [`DTYPES`], and `W` must be `T` or f32.
///
/// # Errors
/// [`Error::Unsupported`] if one of them is not supported.
pub fn check_dtypes<T: Element, W: Element>(backend: &'static str) -> Result<()> {
    if !DTYPES.contains(&T::DTYPE) {
        const WHY: &str = "they are f32, bf16 or f16; the CPU backend runs f64";
        let what = format!("tensors of {}", T::DTYPE);
        return Err(Error::Unsupported { backend, what, why: WHY.into() });
    }
    if W::DTYPE != T::DTYPE && W::DTYPE != Dtype::F32 {
        let what = format!("weights of {} with tensors of {}", W::DTYPE, T::DTYPE);
        let why = "weights have the tensors' type, or f32 with 16-bit tensors".into();
        return Err(Error::Unsupported { backend, what, why });
    }
    Ok(())
}

/// Expands to the methods of `Backend` that forward to the field `device` or to the buffers. Used
/// inside an `impl Backend`. `device` must have `zeroed`, `upload`, `download` and `synchronize`.
/// `checks_lengths` returns `false`, because kernels clamp lengths.
#[macro_export]
macro_rules! device_methods {
    () => {
        fn checks_lengths(&self) -> bool {
            false
        }

        fn alloc<P: $crate::bytemuck::Pod + Send + Sync>(
            &self,
            len: usize,
        ) -> $crate::flashrnn_core::Result<Self::Buffer<P>> {
            self.device.zeroed(len)
        }

        fn upload<P: $crate::bytemuck::Pod + Send + Sync>(
            &self,
            data: &[P],
        ) -> $crate::flashrnn_core::Result<Self::Buffer<P>> {
            self.device.upload(data)
        }

        fn download<P: $crate::bytemuck::Pod + Send + Sync>(
            &self,
            view: Self::View<'_, P>,
        ) -> $crate::flashrnn_core::Result<Vec<P>> {
            self.device.download(view)
        }

        fn synchronize(&self) -> $crate::flashrnn_core::Result<()> {
            self.device.synchronize()
        }

        fn view<'a, P: $crate::bytemuck::Pod + Send + Sync>(
            &self,
            buffer: &'a Self::Buffer<P>,
        ) -> Self::View<'a, P> {
            buffer.view()
        }

        fn view_mut<'a, P: $crate::bytemuck::Pod + Send + Sync>(
            &self,
            buffer: &'a mut Self::Buffer<P>,
        ) -> Self::ViewMut<'a, P> {
            buffer.view_mut()
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{bf16, f16};

    #[test]
    fn weights_have_the_tensors_type_or_f32() {
        assert_eq!(check_dtypes::<f32, f32>("test"), Ok(()));
        assert_eq!(check_dtypes::<f16, f16>("test"), Ok(()));
        assert_eq!(check_dtypes::<bf16, f32>("test"), Ok(()));
        let refused = |result: Result<()>| match result {
            Err(Error::Unsupported { backend: "test", what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(check_dtypes::<f64, f64>("test")), "tensors of f64");
        let what = refused(check_dtypes::<f32, f16>("test"));
        assert_eq!(what, "weights of f16 with tensors of f32");
    }
}
