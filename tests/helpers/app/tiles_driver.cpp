// Runs the jobs of a file through examples/app/f2i_tiles.hpp; tiles_driver.mjs is its twin and says what a job is. tiles_driver MANIFEST JOBS
#include "f2i_tiles.hpp"

#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

namespace {

f2i::Floats floats(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  f2i::Floats values(bytes.size() / sizeof(float));
  std::copy_n(reinterpret_cast<const float*>(bytes.data()), values.size(), values.begin());
  return values;
}

void write(const std::string& path, const f2i::Floats& values) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
}

// An engine that any language computes to the last bit: a context of one number, and nearest pixels times it.
f2i::Floats engine(const std::string& component, const f2i::Tensors& inputs, std::size_t scale) {
  const f2i::Floats& lr = inputs.at("lr");
  if (component == "feature_encoder") {
    const float sum = lr.front() + lr.back();
    return {sum + 0.5F};
  }
  const float context = inputs.at("context")[0];
  const std::size_t tile = static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(lr.size()) / 3))), side = tile * scale;
  f2i::Floats result(3 * side * side);
  for (std::size_t at = 0; at < result.size(); at++) {
    const std::size_t k = at / (side * side), i = at % (side * side) / side, j = at % side;
    result[at] = lr[(k * tile + i / scale) * tile + j / scale] * context;
  }
  return result;
}

void run(const f2i::Manifest& manifest, std::istringstream job) {
  std::string kind, fade, from, to;
  job >> kind;
  if (kind == "photo") {
    f2i::TilePlan plan{};
    job >> plan.height >> plan.width >> plan.tile >> plan.overlap >> plan.scale >> plan.margin >> plan.align >> fade >> from >> to;
    plan.linear = fade == "linear";
    plan.prepare();
    const auto scale = static_cast<std::size_t>(plan.scale);
    const auto flow = f2i::dataflow(manifest, [=](const std::string& component, const f2i::Tensors& in) { return engine(component, in, scale); });
    write(to, f2i::upscale_image(floats(from), plan, flow));
  } else if (kind == "ramp") {
    int n = 0;
    job >> n >> to;
    const std::vector<double> rising = f2i::ramp(n);
    write(to, f2i::Floats(rising.begin(), rising.end()));
  } else if (kind == "window") {
    int tile = 0, overlap = 0, scale = 0;
    job >> tile >> overlap >> scale >> fade >> to;
    write(to, f2i::tile_window(tile, overlap, scale, fade == "linear"));
  } else {
    std::string result;
    job >> from >> result >> to;
    f2i::ColorSums sums;
    sums.add_photo(floats(from));
    sums.add_result(floats(result));
    f2i::Floats found;
    for (std::size_t k = 0; k < 3; k++) found.push_back(static_cast<float>(sums.affine(k).first));
    for (std::size_t k = 0; k < 3; k++) found.push_back(static_cast<float>(sums.affine(k).second));
    write(to, found);
  }
}

}  // namespace

int main(int, char** arguments) {
  try {
    std::ifstream file(arguments[1]), jobs(arguments[2]);
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const f2i::Manifest manifest = f2i::read_manifest(text);
    for (std::string line; std::getline(jobs, line);) run(manifest, std::istringstream(line));
  } catch (const std::invalid_argument& e) {
    std::cerr << e.what() << '\n';
    return 2;
  }
}
