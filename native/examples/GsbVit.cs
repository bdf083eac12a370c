// The C API for C#, over P/Invoke: put libgsb_vit.so.0 where the loader finds it. tests/native/test_package.py compares
// every line with native/include/gsb_vit.h. .NET 5 or newer.
using System;
using System.Runtime.InteropServices;

[StructLayout(LayoutKind.Sequential)]
public struct GsbVitInfo
{
    public int height, width, classes, tokens, embed_dim, depth, num_heads, mlp_hidden, threads;
    public IntPtr backend, name; // Marshal.PtrToStringUTF8
    public int attention_groups;
}

[StructLayout(LayoutKind.Sequential)]
public struct GsbVitDecision
{
    public double temperature;
    public int has_unknown;
    public double false_alarm_rate;
}

[StructLayout(LayoutKind.Sequential)]
public struct GsbVitStage
{
    public IntPtr name;
    public double seconds, bit_macs, byte_macs;
}

public static class GsbVit
{
    const string Library = "libgsb_vit.so.0";
    public const int Grey = 1, Rgb = 3, Rgba = 4;

    [DllImport(Library)] public static extern IntPtr gsb_vit_load([MarshalAs(UnmanagedType.LPUTF8Str)] string path, int threads, [MarshalAs(UnmanagedType.LPUTF8Str)] string backend);
    [DllImport(Library)] public static extern IntPtr gsb_vit_load_within([MarshalAs(UnmanagedType.LPUTF8Str)] string path, int threads, [MarshalAs(UnmanagedType.LPUTF8Str)] string backend, nuint max_memory);
    [DllImport(Library)] public static extern IntPtr gsb_vit_load_bytes(byte[] bytes, nuint size, int threads, [MarshalAs(UnmanagedType.LPUTF8Str)] string backend);
    [DllImport(Library)] public static extern void gsb_vit_free(IntPtr model);
    [DllImport(Library)] public static extern GsbVitInfo gsb_vit_get_info(IntPtr model);
    [DllImport(Library)] public static extern IntPtr gsb_vit_class_name(IntPtr model, int index);
    [DllImport(Library)] public static extern int gsb_vit_predict(IntPtr model, byte[] pixels, nuint count, float[] logits);
    [DllImport(Library)] public static extern int gsb_vit_masks(IntPtr model, byte[] pixels, byte[] masks);
    [DllImport(Library)] public static extern int gsb_vit_predict_image(IntPtr model, byte[] pixels, int width, int height, nuint stride, int format, int orientation, float[] logits);
    [DllImport(Library)] public static extern int gsb_vit_prepare_image(IntPtr model, byte[] pixels, int width, int height, nuint stride, int format, int orientation, byte[] prepared);
    [DllImport(Library)] public static extern void gsb_vit_set_max_pixels(IntPtr model, nuint pixels);
    [DllImport(Library)] public static extern GsbVitDecision gsb_vit_get_decision(IntPtr model);
    [DllImport(Library)] public static extern int gsb_vit_probabilities(IntPtr model, float[] logits, nuint count, double[] probabilities);
    [DllImport(Library)] public static extern int gsb_vit_is_unknown(IntPtr model, float[] logits);
    [DllImport(Library)] public static extern void gsb_vit_set_profiling(IntPtr model, int on);
    [DllImport(Library)] public static extern nuint gsb_vit_profile(IntPtr model, [Out] GsbVitStage[] stages, nuint capacity);
    [DllImport(Library)] public static extern IntPtr gsb_vit_backends();
    [DllImport(Library)] public static extern IntPtr gsb_vit_error();
}
