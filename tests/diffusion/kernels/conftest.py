import os

if os.environ.get("TRITON_INTERPRET") == "1":  # test_drop_fields_triton.py runs the tests of this folder again
    from asymdiffrec.diffusion.kernels import drop_fields, drop_fields_triton

    drop_fields._drop_fields.register_kernel("cpu")(drop_fields_triton.forward)
    drop_fields._drop_fields_backward.register_kernel("cpu")(drop_fields_triton.backward)
