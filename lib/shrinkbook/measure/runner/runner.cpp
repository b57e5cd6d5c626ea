// Runs one network on ncnn and prints JSON lines; the contract is that of measure/protocol.py and measure/wheel_runner.py.
// Exit status: 0, 2 usage, 3 model, 4 input, 5 inference or output, 6 memory.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <new>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "cpu.h"
#include "net.h"
#include "platform.h"

namespace {

struct Failed {
    const char* what;
    int status;
    std::string message;
};

[[noreturn]] void fail(const char* what, int status, const std::string& message) { throw Failed{what, status, message}; }
[[noreturn]] void usage(const std::string& message) { fail("usage", 2, message); }

struct Options {
    std::map<std::string, std::string> words = {
        {"threads", "1"}, {"cpus", ""},     {"fp16", "0"},   {"warmup", "10"}, {"warmup-s", "1"}, {"loops", "50"},
        {"min-s", "10"},  {"max-s", "60"},  {"hz", "5"},     {"calibrate", "20"}, {"param", ""},  {"bin", ""},
        {"in", ""},       {"out", ""},      {"shape", ""},   {"pid", ""}};
    std::vector<std::pair<std::string, std::string>> samples;
    bool about = false;

    const std::string& text(const std::string& name) const { return words.at(name); }
    double number(const std::string& name) const {
        char* end = nullptr;
        const double value = std::strtod(text(name).c_str(), &end);
        if (text(name).empty() || *end) usage("--" + name + " " + text(name) + ": want a number");
        return value;
    }
};

int64_t now_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

int64_t cpu_ns() {
    timespec spent;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    return spent.tv_sec * 1000000000LL + spent.tv_nsec;
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return out + "\"";
}

std::string slurp(const std::string& path) {
    std::ifstream file(path);
    if (!file) fail("input", 4, path + ": cannot be read");
    std::ostringstream out;
    out << file.rdbuf();
    return out.str();
}

// VmRSS or VmHWM of this process in kB, or "null".
std::string memory(const std::string& field) {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);)
        if (line.compare(0, field.size() + 1, field + ":") == 0)
            return std::to_string(std::strtoll(line.c_str() + field.size() + 1, nullptr, 10));
    return "null";
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; i++) {
        const std::string word = argv[i];
        if (word == "--about") {
            options.about = true;
            continue;
        }
        const std::string name = word.compare(0, 2, "--") ? "" : word.substr(2);
        if (i + 1 >= argc) usage(word + ": unknown, or without a value");
        const std::string value = argv[++i];
        if (name == "sample") {
            const size_t split = value.find('=');
            if (split == std::string::npos) usage("--sample wants NAME=PATH");
            options.samples.emplace_back(value.substr(0, split), value.substr(split + 1));
        } else if (options.words.count(name)) {
            options.words[name] = value;
        } else {
            usage(word + ": unknown");
        }
    }
    for (const char* name : {"param", "bin", "in", "out", "shape"})
        if (!options.about && options.text(name).empty()) usage(std::string("missing: --") + name);
    return options;
}

uint64_t affinity() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set)) return 0;
    uint64_t mask = 0;
    for (int cpu = 0; cpu < 64; cpu++)
        if (CPU_ISSET(cpu, &set)) mask |= 1ULL << cpu;
    return mask;
}

// Before any thread is started, so that all of them inherit it; then looked at, not believed.
void pin(const std::string& hex) {
    const uint64_t mask = std::strtoull(hex.c_str(), nullptr, 16);
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int cpu = 0; cpu < 64; cpu++)
        if (mask >> cpu & 1) CPU_SET(cpu, &set);
    if (!mask || sched_setaffinity(0, sizeof(set), &set) || affinity() != mask) usage("--cpus " + hex + ": refused");
}

// Channels that the layer reading in0 expects, from its weight count; 0 where that layer cannot tell.
int channels_of(const std::string& param) {
    std::istringstream file(param);
    std::set<std::string> reads = {"in0"};
    std::string line;
    for (int number = 0; std::getline(file, line); number++) {
        if (number < 2) continue;
        std::istringstream words(line);
        std::string kind, name, word;
        int inputs = 0, outputs = 0;
        if (!(words >> kind >> name >> inputs >> outputs)) continue;
        bool ours = false;
        for (int i = 0; i < inputs && words >> word; i++) ours = ours || reads.count(word);
        std::vector<std::string> written;
        for (int i = 0; i < outputs && words >> word; i++) written.push_back(word);
        if (kind == "Input" || !ours) continue;
        if (kind == "Split" || kind == "Noop") {
            reads.insert(written.begin(), written.end());
            continue;
        }
        if (kind != "Convolution") return 0;
        std::map<int, int> values;
        while (words >> word) {
            const size_t split = word.find('=');
            if (split != std::string::npos) values[std::atoi(word.c_str())] = std::atoi(word.c_str() + split + 1);
        }
        const int height = values.count(11) ? values[11] : values[1];
        const int kernel = values[0] * values[1] * height;
        return kernel ? values[6] / kernel : 0;
    }
    return 0;
}

ncnn::Mat image(const Options& options) {
    int c = 0, h = 0, w = 0;
    char rest = 0;
    const std::string& shape = options.text("shape");
    if (std::sscanf(shape.c_str(), "%d,%d,%d%c", &c, &h, &w, &rest) != 3 || c < 1 || h < 1 || w < 1)
        usage("--shape " + shape + ": want C,H,W");
    const int wanted = channels_of(slurp(options.text("param")));
    if (wanted && wanted != c)
        fail("input", 4, "the network reads " + std::to_string(wanted) + " channels, the input has " + std::to_string(c));
    const std::string bytes = slurp(options.text("in"));
    const size_t size = sizeof(float) * c * h * w;
    if (bytes.size() != size) fail("input", 4, "the input file does not hold the numbers of shape " + shape);
    ncnn::Mat mat(w, h, c);
    if (mat.empty()) fail("memory", 6, "out of memory");
    for (int q = 0; q < c; q++)
        std::memcpy(mat.channel(q), bytes.data() + sizeof(float) * q * h * w, sizeof(float) * h * w);
    return mat;
}

ncnn::Mat infer(const ncnn::Net& net, const ncnn::Mat& in) {
    ncnn::Extractor extractor = net.create_extractor();
    if (extractor.input("in0", in)) fail("input", 4, "the network has no input in0");
    ncnn::Mat out;
    const int status = extractor.extract("out0", out);
    if (status == -100) fail("memory", 6, "out of memory");
    if (status) fail("inference", 5, "ncnn ended with status " + std::to_string(status));
    return out;
}

// Nanoseconds of a fixed piece of arithmetic, which only the clock of the processor changes.
void calibrate(const char* when, int rounds) {
    std::vector<float> a(16384), b(16384);
    for (size_t i = 0; i < a.size(); i++) a[i] = i / 16383.0f;
    std::printf("{\"event\":\"calibration\",\"when\":\"%s\",\"ns\":[", when);
    volatile float sink = 0;
    for (int round = 0; round < rounds; round++) {
        const int64_t started = now_ns();
        for (int pass = 0; pass < 400; pass++) {
            for (size_t i = 0; i < a.size(); i++) b[i] = a[i] * 0.999f + b[i] * 0.5f;
            sink = b[pass];
        }
        std::printf("%s%lld", round ? "," : "", static_cast<long long>(now_ns() - started));
    }
    (void)sink;
    std::printf("]}\n");
}

struct Sample {
    int64_t t_ns;
    std::vector<std::string> values;
};

// Reads the files to be sampled, at most ten times a second, until told to stop.
void sample(const Options& options, std::vector<Sample>& samples, const std::atomic<bool>& stop) {
    const auto pause = std::chrono::duration<double>(1 / std::min(std::max(options.number("hz"), 0.1), 10.0));
    while (!stop) {
        Sample row{now_ns(), {}};
        for (const auto& one : options.samples) {
            std::ifstream file(one.second);
            std::string text;
            row.values.push_back(file && std::getline(file, text) ? quoted(text) : "null");
        }
        samples.push_back(row);
        const auto until = std::chrono::steady_clock::now() + pause;
        while (!stop && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

void describe(const ncnn::Mat& mat, const std::string& path) {
    const ncnn::Mat flat = mat.reshape(mat.w * mat.h * mat.d * mat.c);
    const float* values = flat;
    double sum = 0, square = 0;
    int best = 0;
    bool finite = true;
    for (int i = 0; i < flat.w; i++) {
        finite = finite && std::isfinite(values[i]);
        sum += values[i];
        square += static_cast<double>(values[i]) * values[i];
        if (values[i] > values[best]) best = i;
    }
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(values), sizeof(float) * flat.w);
    if (!file.flush()) fail("inference", 5, path + ": cannot be written");
    std::printf("\"out_n\":%d,\"argmax\":%d,\"finite\":%s", flat.w, best, finite ? "true" : "false");
    if (finite) std::printf(",\"out_sum\":%.9g,\"out_l2\":%.9g", sum, std::sqrt(square));
}

void run(const Options& options) {
    if (!options.text("pid").empty()) std::ofstream(options.text("pid")) << getpid() << "\n";
    if (!options.text("cpus").empty()) pin(options.text("cpus"));
    const int threads = static_cast<int>(options.number("threads"));
    const bool fp16 = options.number("fp16") != 0;
    std::printf("{\"event\":\"env\",\"runner\":\"c++\",\"ncnn\":\"%s\",\"cpus\":%d,\"affinity\":\"%llx\",\"threads\":%d,"
                "\"fp16\":%d}\n", NCNN_VERSION_STRING, ncnn::get_cpu_count(),
                static_cast<unsigned long long>(affinity()), threads, fp16 ? 1 : 0);
    if (options.about) return;
    const ncnn::Mat in = image(options);

    ncnn::Net net;
    net.opt.num_threads = threads;
    net.opt.use_vulkan_compute = net.opt.use_bf16_storage = false;
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = fp16;
    const std::string before = memory("VmRSS");
    const int64_t loading = now_ns();
    if (net.load_param(options.text("param").c_str())) fail("model", 3, "not a network, or a layer is missing");
    if (net.load_model(options.text("bin").c_str())) fail("model", 3, "the weights do not fit the network (truncated?)");
    std::printf("{\"event\":\"load\",\"ns\":%lld,\"rss_kb_before\":%s,\"rss_kb_after\":%s}\n",
                static_cast<long long>(now_ns() - loading), before.c_str(), memory("VmRSS").c_str());
    calibrate("before", static_cast<int>(options.number("calibrate")));

    const double most = options.number("max-s");
    const int64_t warming = now_ns();
    int warmed = 0;
    while (warmed < options.number("warmup") || now_ns() - warming < 1e9 * options.number("warmup-s")) {
        infer(net, in);
        warmed++;
        if (now_ns() - warming > 1e9 * most) break;
    }
    std::printf("{\"event\":\"warmup\",\"runs\":%d,\"ns\":%lld}\n", warmed, static_cast<long long>(now_ns() - warming));

    std::vector<Sample> samples;
    std::atomic<bool> stop{false};
    std::thread sampler;
    if (!options.samples.empty()) sampler = std::thread([&] { sample(options, samples, stop); });
    std::vector<std::pair<int64_t, int64_t>> runs;
    ncnn::Mat out;
    int64_t wall = 0;
    const int64_t spent = cpu_ns(), first = now_ns();
    try {
        do {
            const int64_t begun = now_ns();
            out = infer(net, in);
            const int64_t ended = now_ns();
            runs.emplace_back(begun - first, ended - begun);
            wall = ended - first;
        } while (wall < 1e9 * most && (runs.size() < options.number("loops") || wall < 1e9 * options.number("min-s")));
    } catch (...) {
        stop = true;
        if (sampler.joinable()) sampler.join();
        throw;
    }
    const int64_t cpu = cpu_ns() - spent;
    stop = true;
    if (sampler.joinable()) sampler.join();

    // Only now: a pipe inside the loop would be timed with it.
    for (size_t i = 0; i < runs.size(); i++)
        std::printf("{\"event\":\"run\",\"i\":%zu,\"t_ns\":%lld,\"ns\":%lld}\n", i,
                    static_cast<long long>(runs[i].first), static_cast<long long>(runs[i].second));
    for (const Sample& row : samples) {
        std::printf("{\"event\":\"sample\",\"t_ns\":%lld", static_cast<long long>(row.t_ns));
        for (size_t i = 0; i < row.values.size(); i++)
            std::printf(",%s:%s", quoted(options.samples[i].first).c_str(), row.values[i].c_str());
        std::printf("}\n");
    }
    calibrate("after", static_cast<int>(options.number("calibrate")));
    std::printf("{\"event\":\"end\",\"runs\":%zu,\"wall_ns\":%lld,\"cpu_ns\":%lld,\"vm_hwm_kb\":%s,", runs.size(),
                static_cast<long long>(wall), static_cast<long long>(cpu), memory("VmHWM").c_str());
    describe(out, options.text("out"));
    std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
    int status = 0;
    try {
        run(parse(argc, argv));
    } catch (const Failed& error) {
        std::printf("{\"event\":\"error\",\"what\":\"%s\",\"message\":%s}\n", error.what, quoted(error.message).c_str());
        status = error.status;
    } catch (const std::bad_alloc&) {
        std::printf("{\"event\":\"error\",\"what\":\"memory\",\"message\":\"out of memory\"}\n");
        status = 6;
    }
    std::fflush(stdout);
    return status;
}
