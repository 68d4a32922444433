// self_test_driver.cpp: memory, lazy streams, events, capture and replay, errors that stay.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "check.h"

namespace {

struct Fixture {
    void* module = nullptr;
    void* scale = nullptr;
    void* add_one = nullptr;
    void* stream = nullptr;
    Fixture() {
        EXPECT_EQ(cuModuleLoadData(&module, "any image"), 0);
        EXPECT_EQ(cuModuleGetFunction(&scale, module, "t_scale"), 0);
        EXPECT_EQ(cuModuleGetFunction(&add_one, module, "t_add_one"), 0);
        EXPECT_EQ(cuStreamCreate(&stream, 1), 0);
    }
    ~Fixture() {
        cuStreamDestroy_v2(stream);
        cuModuleUnload(module);
    }
    int launch(void* function, void* on, const float* x, float* y, unsigned threads = 64, unsigned shared = 0) {
        PairParams params{x, y, 64};
        void* list[] = {&params};
        return cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, shared, on, list, nullptr);
    }
};

void test_functions(Fixture& f) {
    void* missing = nullptr;
    emu_reset_counters();
    EXPECT_EQ(cuModuleGetFunction(&missing, f.module, "no_such_kernel"), 500);
    EXPECT_EQ(emu_counter("lookups_failed"), 1);
    // A fat binary has the kernels of the file it names: its head says how long it is.
    struct {
        uint32_t magic = 0xba55ed50u;
        uint16_t version = 1, head_bytes = 16;
        uint64_t bytes = 64;
        char path[64] = "emulator/tests/kernels.cu";
    } fat, other;
    strcpy(other.path, "emulator/tests/other_kernels.cu");
    void *module = nullptr, *scale = nullptr;
    EXPECT_EQ(cuModuleLoadData(&module, &fat), 0);
    EXPECT_EQ(cuModuleGetFunction(&scale, module, "t_scale"), 0);
    EXPECT_EQ(cuModuleUnload(module), 0);
    EXPECT_EQ(cuModuleLoadData(&module, &other), 0);
    EXPECT_EQ(cuModuleGetFunction(&missing, module, "t_scale"), 500);
    EXPECT_EQ(emu_counter("lookups_failed"), 2);
    EXPECT_EQ(cuModuleUnload(module), 0);
    int version = 0;
    EXPECT_EQ(cuDriverGetVersion(&version), 0);
    EXPECT_EQ(version, 13000);
    setenv("EMU_DRIVER_VERSION", "12020", 1);
    EXPECT_EQ(cuDriverGetVersion(&version), 0);
    EXPECT_EQ(version, 12020);
    unsetenv("EMU_DRIVER_VERSION");
    size_t offset = 1, size = 0;
    EXPECT_EQ(cuFuncGetParamInfo(f.scale, 0, &offset, &size), 0);
    EXPECT_EQ(offset, 0);
    EXPECT_EQ(size, sizeof(PairParams));
    EXPECT_EQ(cuFuncGetParamInfo(f.scale, 1, &offset, &size), 1);
    EXPECT_EQ(f.launch(f.scale, f.stream, nullptr, nullptr, 128), 1);
    EXPECT(contains(last_report(), "written for 64"));
    EXPECT_EQ(f.launch(f.scale, f.stream, nullptr, nullptr, 64, 50000), 1);
    EXPECT_EQ(cuFuncSetAttribute(f.scale, 8, 101376), 0);
    EXPECT_EQ(cuFuncSetAttribute(f.scale, 8, 101377), 1);
    const char* name = nullptr;
    EXPECT_EQ(cuGetErrorName(700, &name), 0);
    EXPECT(contains(name, "CUDA_ERROR_ILLEGAL_ADDRESS"));
    bool found = false;
    for (uint32_t i = 0; i < emu_kernel_count(); ++i)
        found |= strcmp(emu_kernel_name(i), "t_gemm") == 0 && emu_kernel_threads(i) == 128;
    EXPECT(found);
}

void test_memory() {
    uint64_t a = 0;
    EXPECT_EQ(cuMemAlloc_v2(&a, 1000), 0);
    EXPECT_EQ(a % 256, 0);
    float nan = 0.0f;
    EXPECT_EQ(cuMemcpyDtoH_v2(&nan, a, 4), 0);
    EXPECT(std::isnan(nan));
    char host[2000] = {};
    EXPECT_EQ(cuMemcpyHtoD_v2(a, host, 1001), 1);
    EXPECT(contains(last_report(), "1000 bytes"));
    EXPECT_EQ(cuMemcpyHtoD_v2(a + 900, host, 101), 1);
    EXPECT_EQ(cuMemFree_v2(a + 4), 1);
    EXPECT_EQ(cuMemFree_v2(a), 0);
    EXPECT_EQ(cuMemFree_v2(a), 1);
    EXPECT(contains(last_report(), "freed device allocation"));
    EXPECT_EQ(cuMemcpyDtoH_v2(host, a, 4), 1);
    EXPECT_EQ(cuMemAlloc_v2(&a, 0), 1);
    EXPECT_EQ(cuMemAlloc_v2(&a, size_t{1} << 40), 2);
}

// Nothing happens before something waits for it.
void test_lazy(Fixture& f) {
    float* pinned = nullptr;
    EXPECT_EQ(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 512, 0), 0);
    float* result = pinned + 64;
    Buffer<float> x(64), y(64);
    for (int i = 0; i < 64; ++i) pinned[i] = 1.0f;
    EXPECT_EQ(cuMemcpyHtoDAsync_v2(x.device, pinned, 256, f.stream), 0);
    EXPECT_EQ(f.launch(f.scale, f.stream, x.pointer(), y.pointer()), 0);
    result[0] = -1.0f;
    EXPECT_EQ(cuMemcpyDtoHAsync_v2(result, y.device, 256, f.stream), 0);
    pinned[0] = 5.0f;  // too early: the copy has not run
    EXPECT_EQ(result[0], -1);
    EXPECT_EQ(cuStreamQuery(f.stream), 600);
    EXPECT_EQ(cuStreamSynchronize(f.stream), 0);
    EXPECT_EQ(result[0], 10);
    EXPECT_EQ(result[1], 2);
    EXPECT_EQ(cuStreamQuery(f.stream), 0);
    // pageable memory is staged
    std::vector<float> pageable(64, 3.0f);
    EXPECT_EQ(cuMemcpyHtoDAsync_v2(x.device, pageable.data(), 256, f.stream), 0);
    pageable.assign(64, 9.0f);
    EXPECT_EQ(f.launch(f.scale, f.stream, x.pointer(), y.pointer()), 0);
    // a blocking copy does not wait for a non-blocking stream
    y.host[0] = 0.0f;
    y.download();
    EXPECT_EQ(y.host[0], 10);
    EXPECT_EQ(cuMemcpyDtoHAsync_v2(y.host.data(), y.device, 256, f.stream), 0);
    EXPECT_EQ(y.host[0], 6);
    EXPECT_EQ(cuMemFreeHost(pinned), 0);
}

// Two streams: without the event the outcome is the schedule's choice, with it it is not.
void test_events(Fixture& f) {
    void *other = nullptr, *event = nullptr, *start = nullptr;
    EXPECT_EQ(cuStreamCreate(&other, 1), 0);
    EXPECT_EQ(cuEventCreate(&event, 0), 0);
    EXPECT_EQ(cuEventCreate(&start, 0), 0);
    bool differs = false;
    for (int order = 0; order < 8; ++order) {
        emu_set_order(order < 2 ? order : 2, static_cast<uint64_t>(order));
        for (int with_event = 0; with_event < 2; ++with_event) {
            Buffer<float> x(64, 1.0f), y(64, 0.0f);
            EXPECT_EQ(cuEventRecord(start, f.stream), 0);
            EXPECT_EQ(cuMemsetD32Async(x.device, 0x40400000, 64, f.stream), 0);  // 3
            EXPECT_EQ(cuEventRecord(event, f.stream), 0);
            if (with_event != 0) EXPECT_EQ(cuStreamWaitEvent(other, event, 0), 0);
            EXPECT_EQ(f.launch(f.scale, other, x.pointer(), y.pointer()), 0);
            EXPECT_EQ(cuStreamSynchronize(other), 0);
            if (with_event != 0) EXPECT_EQ(cuEventQuery(event), 0);
            EXPECT_EQ(cuCtxSynchronize(), 0);
            float ms = -1.0f;
            EXPECT_EQ(cuEventElapsedTime_v2(&ms, start, event), 0);
            EXPECT(ms >= 0.0f);
            y.download();
            if (with_event != 0) {
                EXPECT_EQ(y.host[0], 6);
            } else {
                differs |= y.host[0] != 6.0f;
            }
        }
    }
    emu_set_order(0, 0);
    EXPECT(differs);
    // a query is not a wait, but polling ends
    EXPECT_EQ(cuEventRecord(start, f.stream), 0);
    Buffer<float> x(64), y(64);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(f.launch(f.scale, f.stream, x.pointer(), y.pointer()), 0);
    EXPECT_EQ(cuEventRecord(event, f.stream), 0);
    int polls = 0;
    while (cuEventQuery(event) == 600 && polls < 100) ++polls;
    EXPECT_EQ(polls, 4);
    EXPECT_EQ(cuEventDestroy_v2(event), 0);
    EXPECT_EQ(cuEventDestroy_v2(event), 400);
    EXPECT_EQ(cuEventDestroy_v2(start), 0);
    EXPECT_EQ(cuStreamDestroy_v2(other), 0);
}

// Memory that a second stream fills again between two kernels of the first. An order of work finds either event
// missing: that the kernel is behind the copy, that the next copy is behind the kernel. The host waits once.
void test_refill(Fixture& f) {
    void *copies = nullptr, *arrived = nullptr, *read = nullptr;
    EXPECT_EQ(cuStreamCreate(&copies, 1), 0);
    EXPECT_EQ(cuEventCreate(&arrived, 2), 0);
    EXPECT_EQ(cuEventCreate(&read, 2), 0);
    float* pinned = nullptr;
    EXPECT_EQ(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 512, 0), 0);
    for (int i = 0; i < 128; ++i) pinned[i] = i < 64 ? 1.0f : 2.0f;
    bool wrong[3] = {};
    for (int order = 0; order < 8; ++order) {
        emu_set_order(order < 2 ? order : 2, static_cast<uint64_t>(order));
        for (int missing = 0; missing < 3; ++missing) {  // none, arrived, read
            Buffer<float> x(64, 0.0f), first(64), second(64);
            float* results[2] = {first.pointer(), second.pointer()};
            emu_reset_counters();
            for (int turn = 0; turn < 2; ++turn) {
                EXPECT_EQ(cuMemcpyHtoDAsync_v2(x.device, pinned + 64 * turn, 256, copies), 0);
                EXPECT_EQ(cuEventRecord(arrived, copies), 0);
                if (missing != 1) EXPECT_EQ(cuStreamWaitEvent(f.stream, arrived, 0), 0);
                EXPECT_EQ(f.launch(f.scale, f.stream, x.pointer(), results[turn]), 0);
                EXPECT_EQ(cuEventRecord(read, f.stream), 0);
                if (missing != 2) EXPECT_EQ(cuStreamWaitEvent(copies, read, 0), 0);
            }
            EXPECT_EQ(emu_counter("waits"), 0);
            EXPECT_EQ(cuEventSynchronize(read), 0);
            EXPECT_EQ(cuEventSynchronize(read), 0);
            EXPECT_EQ(emu_counter("waits"), 1);
            EXPECT_EQ(cuCtxSynchronize(), 0);
            EXPECT_EQ(emu_counter("host_bytes"), 512);
            first.download();
            second.download();
            wrong[missing] |= first.host[63] != 2.0f || second.host[63] != 4.0f;
        }
    }
    emu_set_order(0, 0);
    EXPECT(!wrong[0]);
    EXPECT(wrong[1]);
    EXPECT(wrong[2]);
    EXPECT_EQ(cuMemFreeHost(pinned), 0);
    EXPECT_EQ(cuEventDestroy_v2(arrived), 0);
    EXPECT_EQ(cuEventDestroy_v2(read), 0);
    EXPECT_EQ(cuStreamDestroy_v2(copies), 0);
}

void test_capture(Fixture& f) {
    void *other = nullptr, *event = nullptr, *back = nullptr, *graph = nullptr, *exec = nullptr;
    EXPECT_EQ(cuStreamCreate(&other, 1), 0);
    EXPECT_EQ(cuEventCreate(&event, 2), 0);
    EXPECT_EQ(cuEventCreate(&back, 2), 0);
    float* pinned = nullptr;
    EXPECT_EQ(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 256, 0), 0);
    Buffer<float> x(64), y(64, 0.0f), z(64, 0.0f);
    emu_reset_counters();
    EXPECT_EQ(cuStreamBeginCapture_v2(f.stream, 1), 0);
    EXPECT_EQ(cuMemcpyHtoDAsync_v2(x.device, pinned, 256, f.stream), 0);
    EXPECT_EQ(cuEventRecord(event, f.stream), 0);
    EXPECT_EQ(cuStreamWaitEvent(other, event, 0), 0);
    EXPECT_EQ(f.launch(f.scale, f.stream, x.pointer(), y.pointer()), 0);
    EXPECT_EQ(f.launch(f.add_one, other, nullptr, z.pointer()), 0);
    EXPECT_EQ(cuEventRecord(back, other), 0);
    EXPECT_EQ(cuStreamWaitEvent(f.stream, back, 0), 0);
    EXPECT_EQ(cuMemcpyDtoDAsync_v2(x.device, y.device, 256, f.stream), 0);
    int status = 0;
    EXPECT_EQ(cuStreamIsCapturing(f.stream, &status), 0);
    EXPECT_EQ(status, 1);
    EXPECT_EQ(cuStreamEndCapture(f.stream, &graph), 0);
    size_t nodes = 0;
    EXPECT_EQ(cuGraphGetNodes(graph, nullptr, &nodes), 0);
    EXPECT_EQ(nodes, 4);
    EXPECT_EQ(cuGraphInstantiateWithFlags(&exec, graph, 0), 0);
    EXPECT_EQ(cuGraphDestroy(graph), 0);
    EXPECT_EQ(emu_counter("launches"), 0);
    for (int replay = 0; replay < 8; ++replay) {
        emu_set_order(replay < 2 ? replay : 2, static_cast<uint64_t>(replay));
        for (int i = 0; i < 64; ++i) pinned[i] = static_cast<float>(replay);
        EXPECT_EQ(cuGraphLaunch(exec, f.stream), 0);
        EXPECT_EQ(cuStreamSynchronize(f.stream), 0);
        y.download();
        z.download();
        x.download();
        EXPECT_EQ(y.host[63], 2 * replay);
        EXPECT_EQ(x.host[63], 2 * replay);
        EXPECT_EQ(z.host[63], replay + 1);
    }
    emu_set_order(0, 0);
    EXPECT_EQ(emu_counter("launches"), 16);
    EXPECT_EQ(emu_counter("graph_launches"), 8);
    EXPECT_EQ(cuGraphExecDestroy(exec), 0);
    EXPECT_EQ(cuMemFreeHost(pinned), 0);

    // what breaks a capture
    uint64_t p = 0;
    void* pinned_new = nullptr;
    for (int call = 0; call < 9; ++call) {
        EXPECT_EQ(cuStreamBeginCapture_v2(f.stream, call % 2), 0);
        int code = 0;
        switch (call) {
            case 0: code = cuMemAlloc_v2(&p, 4); break;
            case 1: code = cuMemFree_v2(x.device); break;
            case 2: code = cuStreamSynchronize(f.stream); break;
            case 3: code = cuCtxSynchronize(); break;
            case 4: code = cuMemcpyDtoH_v2(y.host.data(), y.device, 4); break;
            case 5: code = cuModuleLoadData(&pinned_new, "x"); break;
            case 6: code = cuMemHostAlloc(&pinned_new, 4, 0); break;
            case 7: code = cuStreamQuery(f.stream); break;
            case 8: code = cuMemcpyHtoD_v2(y.device, y.host.data(), 4); break;
        }
        EXPECT_EQ(code, 900);
        EXPECT_EQ(f.launch(f.scale, f.stream, x.pointer(), y.pointer()), 901);
        EXPECT_EQ(cuStreamEndCapture(f.stream, &graph), 901);
        EXPECT(graph == nullptr);
    }
    // another thread may allocate during a thread-local capture, not during a global one
    for (int mode = 0; mode < 2; ++mode) {
        EXPECT_EQ(cuStreamBeginCapture_v2(f.stream, mode), 0);
        int code = -1;
        void* context = nullptr;
        cuDevicePrimaryCtxRetain(&context, 0);
        std::thread([&] {
            cuCtxSetCurrent(context);
            code = cuMemAlloc_v2(&p, 4);
        }).join();
        cuDevicePrimaryCtxRelease_v2(0);
        EXPECT_EQ(code, mode == 0 ? 900 : 0);
        EXPECT_EQ(cuStreamEndCapture(f.stream, &graph), mode == 0 ? 901 : 0);
    }
    EXPECT_EQ(cuGraphDestroy(graph), 0);
    EXPECT_EQ(cuMemFree_v2(p), 0);
    // a second stream that is not joined, an event from outside
    EXPECT_EQ(cuStreamBeginCapture_v2(f.stream, 1), 0);
    EXPECT_EQ(cuEventRecord(event, f.stream), 0);
    EXPECT_EQ(cuStreamWaitEvent(other, event, 0), 0);
    EXPECT_EQ(f.launch(f.scale, other, x.pointer(), y.pointer()), 0);
    EXPECT_EQ(cuStreamEndCapture(f.stream, &graph), 904);
    EXPECT_EQ(cuEventRecord(event, other), 0);
    EXPECT_EQ(cuStreamBeginCapture_v2(f.stream, 1), 0);
    EXPECT_EQ(cuStreamWaitEvent(f.stream, event, 0), 905);
    EXPECT_EQ(cuStreamEndCapture(f.stream, &graph), 901);
    EXPECT_EQ(cuEventDestroy_v2(event), 0);
    EXPECT_EQ(cuEventDestroy_v2(back), 0);
    EXPECT_EQ(cuStreamDestroy_v2(other), 0);
}

// A fault is reported by what waits, and by everything after it.
[[maybe_unused]] void test_sticky(Fixture& f) {
    Buffer<float> x(64), y(64);
    void* broken = nullptr;
    EXPECT_EQ(cuModuleGetFunction(&broken, f.module, "broken_null"), 0);
    PairParams params{x.pointer(), y.pointer(), 64};
    void* list[] = {&params};
    EXPECT_EQ(cuLaunchKernel(broken, 4, 1, 1, 64, 1, 1, 0, f.stream, list, nullptr), 0);
    EXPECT_EQ(cuStreamSynchronize(f.stream), 700);
    EXPECT(contains(last_report(), "broken_null, block (2, 0, 0), thread 7"));
    uint64_t p = 0;
    EXPECT_EQ(cuMemAlloc_v2(&p, 4), 700);
    EXPECT_EQ(f.launch(f.scale, f.stream, x.pointer(), y.pointer()), 700);
    EXPECT_EQ(emu_reset(), 0);
    EXPECT_EQ(f.launch(f.scale, f.stream, x.pointer(), y.pointer()), 0);
    EXPECT_EQ(cuStreamSynchronize(f.stream), 0);
}

// Several threads, each with its stream, in different orders.
void test_threads(Fixture& f) {
    void* context = nullptr;
    EXPECT_EQ(cuDevicePrimaryCtxRetain(&context, 0), 0);
    std::vector<std::thread> threads;
    int wrong[4] = {};
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            cuCtxSetCurrent(context);
            emu_set_order(t % 3, static_cast<uint64_t>(t));
            void* stream = nullptr;
            cuStreamCreate(&stream, 1);
            for (int round = 0; round < 50; ++round) {
                Buffer<float> x(64, static_cast<float>(t)), y(64);
                wrong[t] += f.launch(f.scale, stream, x.pointer(), y.pointer()) != 0;
                wrong[t] += f.launch(f.add_one, stream, nullptr, y.pointer()) != 0;
                wrong[t] += cuStreamSynchronize(stream) != 0;
                y.download();
                wrong[t] += y.host[40] != static_cast<float>(2 * t + 1);
            }
            cuStreamDestroy_v2(stream);
        });
    }
    for (std::thread& one : threads) one.join();
    for (int count : wrong) EXPECT_EQ(count, 0);
    cuDevicePrimaryCtxRelease_v2(0);
}

}  // namespace

void test_driver() {
    Fixture f;
    test_functions(f);
    test_memory();
    test_lazy(f);
    test_events(f);
    test_refill(f);
    test_capture(f);
#ifndef EMU_SANITIZED
    test_sticky(f);
#endif
    test_threads(f);
}
