// Upscales a photo tile by tile: where the tiles lie, how they are blended, and a bundle's dataflow, with the engine as a function of yours.
//
// The twin of tiles.js and of runtime_py's tiling: the same plan, and the same sums in float32 in the same order, so the stitched photo is the same to the
// last bit. (The weights come from std::sin in double precision and are then rounded to float32. Where a C library's sine differs in its last bit, about
// one weight in 10^8 could differ. -ffast-math gives up the promise.)
//
// C++17, one header, no dependencies; for Android's NDK, for Swift through a bridging header, for anything. Positions are in low-resolution pixels unless a
// name says otherwise.
//
//   f2i::Manifest manifest = f2i::read_manifest(text);
//   f2i::UpscaleTile flow = f2i::dataflow(manifest, [&](const std::string& component, const f2i::Tensors& inputs) { return run(component, inputs); });
//   f2i::TilePlan plan = f2i::photo_plan(manifest, height, width);
//   std::vector<float> photo = f2i::upscale_image(pixels, plan, flow);  // RGB interleaved in and out: clip it to [0, 1]
#ifndef F2I_TILES_HPP
#define F2I_TILES_HPP

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace f2i {

using Floats = std::vector<float>;
using Tensors = std::map<std::string, Floats>;

// Where the tiles of one photo lie, and their weights. As few tiles as the overlap allows, spread evenly; see runtime_py/f2i_runtime/tiling/tile_plan.py.
struct TilePlan {
  int height, width, tile, overlap, scale = 2;
  int margin = 0;  // pixels at a tile's inner edges that get no weight
  int align = 1;   // tile positions are multiples of this
  bool linear = false;
  // The top row of each row of tiles, and the left column of each column; then weights (tile * scale) for each of them: a tile's weight is row weight
  // times column weight. Filled by `prepare`.
  std::vector<int> rows{}, columns{};
  std::vector<Floats> row_weights{}, column_weights{};

  int side() const { return tile * scale; }
  std::size_t count() const { return rows.size() * columns.size(); }
  TilePlan& prepare();
};

// n rising weights, sampled at pixel centres: all inside (0, 1), and ramp + reversed ramp = 1.
inline std::vector<double> ramp(int n, bool linear = false) {
  std::vector<double> rising(static_cast<std::size_t>(n));
  for (int i = 0; i < n; i++) {
    const double x = (i + 0.5) / n, s = std::sin(3.141592653589793 / 2 * x);
    rising[static_cast<std::size_t>(i)] = linear ? x : s * s;
  }
  return rising;
}

namespace detail {

inline std::vector<int> origins(int length, const TilePlan& p) {
  const int extent = std::max(p.tile, (length + p.align - 1) / p.align * p.align);
  const int gaps = (extent - p.tile + p.tile - p.overlap - 1) / (p.tile - p.overlap);
  std::vector<int> starts{0};
  for (int i = 1; i <= gaps; i++) {
    starts.push_back(static_cast<int>(static_cast<long long>(i) * (extent - p.tile) / (static_cast<long long>(gaps) * p.align)) * p.align);
  }
  return starts;
}

// How far the next tile has taken over at an output pixel: 0, the ramp, then 1.
inline double taken(int at, int fade, const std::vector<double>& rising) {
  const int n = static_cast<int>(rising.size());
  return at < fade ? 0.0 : at >= fade + n ? 1.0 : rising[static_cast<std::size_t>(at - fade)];
}

inline std::vector<Floats> axis_weights(const std::vector<int>& starts, const TilePlan& p) {
  const std::vector<double> rising = ramp((p.overlap - 2 * p.margin) * p.scale, p.linear);
  const int n = static_cast<int>(rising.size());
  std::vector<int> fades;
  for (std::size_t i = 1; i < starts.size(); i++) fades.push_back(((starts[i - 1] + p.tile + starts[i]) * p.scale - n) / 2);
  std::vector<Floats> weights;
  for (std::size_t i = 0; i < starts.size(); i++) {
    Floats axis(static_cast<std::size_t>(p.side()));
    for (int k = 0; k < p.side(); k++) {
      const int at = starts[i] * p.scale + k;
      const double arrived = i > 0 ? taken(at, fades[i - 1], rising) : 1.0, gone = i < fades.size() ? taken(at, fades[i], rising) : 0.0;
      axis[static_cast<std::size_t>(k)] = static_cast<float>(arrived - gone);
    }
    weights.push_back(std::move(axis));
  }
  return weights;
}

inline std::vector<int> advances(const std::vector<int>& starts, int length, int scale) {
  std::vector<int> found;
  for (std::size_t i = 0; i < starts.size(); i++) found.push_back((i + 1 < starts.size() ? starts[i + 1] * scale : length) - starts[i] * scale);
  return found;
}

inline int reflect(int i, int n) {
  if (n == 1) return 0;
  const int at = i % (2 * n - 2);
  return at < n ? at : 2 * n - 2 - at;
}

// Adds a tile times its weights, every step rounded to float32: products go through a row of their own, so that no compiler fuses them with the sums.
inline void add_weighted(Floats& sum, const Floats& tile, const Floats& row_weights, const Floats& column_weights, Floats& products) {
  const std::size_t side = row_weights.size();
  products.resize(side);
  for (std::size_t k = 0; k < 3; k++) {
    for (std::size_t i = 0; i < side; i++) {
      const float* from = tile.data() + (k * side + i) * side;
      float* to = sum.data() + (k * side + i) * side;
      for (std::size_t j = 0; j < side; j++) products[j] = row_weights[i] * column_weights[j];
      for (std::size_t j = 0; j < side; j++) products[j] = from[j] * products[j];
      for (std::size_t j = 0; j < side; j++) to[j] += products[j];
    }
  }
}

}  // namespace detail

// Computes positions and weights. Throws std::invalid_argument for numbers that fit no plan.
inline TilePlan& TilePlan::prepare() {
  const auto refuse = [](const std::string& why) { throw std::invalid_argument("f2i::TilePlan: " + why); };
  if (height < 1 || width < 1 || tile < 1 || scale < 1 || align < 1 || margin < 0) refuse("sizes must be at least 1, the margin at least 0");
  if (overlap < 0 || 2 * overlap >= std::max(tile, 2)) refuse("the overlap must be less than half of the tile");
  if (margin && 2 * margin >= overlap) refuse("twice the margin must be less than the overlap");
  if (tile % align || overlap % align) refuse("tile and overlap must be multiples of align");
  rows = detail::origins(height, *this);
  columns = detail::origins(width, *this);
  row_weights = detail::axis_weights(rows, *this);
  column_weights = detail::axis_weights(columns, *this);
  return *this;
}

// The weights of a tile with neighbours on all sides, (tile * scale, tile * scale), for apps that add weighted tiles up and divide by the summed weights.
// `upscale_blocks` needs no division.
inline Floats tile_window(int tile, int overlap, int scale = 2, bool linear = false) {
  TilePlan plan{tile, tile, tile, overlap, scale};
  plan.prepare();
  const std::vector<double> rising = ramp(overlap * scale, linear);
  const std::size_t side = static_cast<std::size_t>(plan.side());
  const auto at = [&](std::size_t k) { return std::min(k, side - 1 - k) < rising.size() ? rising[std::min(k, side - 1 - k)] : 1.0; };
  Floats weights;
  for (std::size_t i = 0; i < side; i++) {
    for (std::size_t j = 0; j < side; j++) weights.push_back(static_cast<float>(at(i) * at(j)));
  }
  return weights;
}

// RGB in [0, 1], interleaved, of rows y0 to y1; every row is asked for once, from top to bottom.
using ReadRows = std::function<Floats(int y0, int y1)>;
// Planes (3, tile, tile) and the tile's position to planes (3, tile * scale, tile * scale).
using UpscaleTile = std::function<Floats(const Floats& tile, int y, int x)>;
// A finished piece, in output pixels: RGB interleaved, height * width * 3 values, not clipped. Every piece comes once.
using WriteBlock = std::function<void(int y, int x, int height, int width, const Floats& pixels)>;

// Upscales a photo tile by tile, by rows of tiles, from left to right in each. Memory: a row of tiles before upscaling, what the next row will be blended
// into, and one tile. Throws std::invalid_argument when rows or tiles come in another size than asked for.
inline void upscale_blocks(const ReadRows& read_rows, const TilePlan& plan, const UpscaleTile& upscale_tile, const WriteBlock& write) {
  const int tile = plan.tile, scale = plan.scale, wide = plan.width * scale;
  const auto size = [](int n) { return static_cast<std::size_t>(n); };
  const std::size_t side = size(plan.side()), area = side * side, last = plan.rows.size() - 1, pitch = size(wide), line = size(plan.width) * 3;
  const std::vector<int> finished = detail::advances(plan.rows, plan.height * scale, scale), advance = detail::advances(plan.columns, wide, scale);
  std::size_t left = 0;  // rows that a row of tiles leaves to be completed by the next one
  for (std::size_t r = 0; r < last; r++) left = std::max(left, side - size(finished[r]));
  Floats carry(3 * left * pitch), strip(size(std::min(tile, plan.height)) * line), planes(3 * size(tile) * size(tile)), sum, pixels, products;
  std::size_t carried = 0;
  int top = 0, bottom = 0;
  for (std::size_t r = 0; r <= last; r++) {
    std::copy(strip.begin() + static_cast<std::ptrdiff_t>(size(plan.rows[r] - top) * line),
              strip.begin() + static_cast<std::ptrdiff_t>(size(bottom - top) * line), strip.begin());
    top = plan.rows[r];
    const int end = std::min(top + tile, plan.height);
    if (end > bottom) {
      const Floats more = read_rows(bottom, end);
      if (more.size() != size(end - bottom) * line) throw std::invalid_argument("f2i::upscale_blocks: rows of another size than asked for");
      std::copy(more.begin(), more.end(), strip.begin() + static_cast<std::ptrdiff_t>(size(bottom - top) * line));
      bottom = end;
    }
    const std::size_t n = size(finished[r]), kept = r < last ? side - n : 0;
    sum.assign(3 * area, 0.0F);  // this tile and what its left neighbours leave for it to complete
    for (std::size_t c = 0; c < plan.columns.size(); c++) {
      for (int i = 0; i < tile; i++) {
        const float* row = strip.data() + size(detail::reflect(i, end - top)) * line;
        for (int j = 0; j < tile; j++) {
          const float* rgb = row + size(detail::reflect(plan.columns[c] + j, plan.width)) * 3;
          for (std::size_t k = 0; k < 3; k++) planes[(k * size(tile) + size(i)) * size(tile) + size(j)] = rgb[k];
        }
      }
      const Floats result = upscale_tile(planes, plan.rows[r], plan.columns[c]);
      if (result.size() != sum.size()) throw std::invalid_argument("f2i::upscale_blocks: an upscaled tile of another size than expected");
      detail::add_weighted(sum, result, plan.row_weights[r], plan.column_weights[c], products);
      const std::size_t m = size(advance[c]), x = size(plan.columns[c] * scale);
      pixels.resize(n * m * 3);
      for (std::size_t k = 0; k < 3; k++) {
        float* plane = sum.data() + k * area;
        for (std::size_t i = 0; i < carried; i++) {
          for (std::size_t j = 0; j < m; j++) plane[i * side + j] += carry[(k * left + i) * pitch + x + j];
        }
        for (std::size_t i = 0; i < n; i++) {
          for (std::size_t j = 0; j < m; j++) pixels[(i * m + j) * 3 + k] = plane[i * side + j];
        }
        for (std::size_t i = 0; i < kept; i++) std::copy_n(plane + (n + i) * side, m, carry.data() + (k * left + i) * pitch + x);
      }
      write(plan.rows[r] * scale, plan.columns[c] * scale, finished[r], advance[c], pixels);
      for (float* row = sum.data(); row != sum.data() + 3 * area; row += side) {
        std::copy(row + m, row + side, row);
        std::fill(row + side - m, row + side, 0.0F);
      }
    }
    carried = kept;
  }
}

// `upscale_blocks` of an image in memory: RGB interleaved, (height, width, 3) to (height * scale, width * scale, 3), not clipped.
inline Floats upscale_image(const Floats& pixels, const TilePlan& plan, const UpscaleTile& upscale_tile) {
  const std::size_t line = static_cast<std::size_t>(plan.width) * 3, wide = line * static_cast<std::size_t>(plan.scale);
  Floats photo(wide * static_cast<std::size_t>(plan.height * plan.scale));
  const auto read = [&](int y0, int y1) {
    return Floats(pixels.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(y0) * line),
                  pixels.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(y1) * line));
  };
  upscale_blocks(read, plan, upscale_tile, [&](int y, int x, int height, int width, const Floats& block) {
    const std::size_t row = static_cast<std::size_t>(width) * 3;
    for (std::size_t i = 0; i < static_cast<std::size_t>(height); i++) {
      std::copy_n(block.data() + i * row, row, photo.data() + (static_cast<std::size_t>(y) + i) * wide + static_cast<std::size_t>(x) * 3);
    }
  });
  return photo;
}

// The colour fix `adain`: gain and offset that give the upscaled photo the mean and the spread of the photo's own colours, over the whole photo.
class ColorSums {
 public:
  // Counts pixels, RGB interleaved: of the photo, or of the result, which is clipped.
  void add_photo(const Floats& pixels) { add(photo_, pixels); }
  void add_result(const Floats& pixels) { add(result_, pixels); }

  // {gain, offset} of a channel: clipped result * gain + offset has the photo's colours.
  std::pair<double, double> affine(std::size_t channel) const {
    const auto [mean, spread] = statistics(photo_, channel);
    const auto [mean_now, spread_now] = statistics(result_, channel);
    const double gain = spread_now > 1e-5 ? spread / spread_now : 1.0;
    return {gain, mean - gain * mean_now};
  }

 private:
  using Sums = std::array<double, 7>;  // pixels, three sums, three sums of squares
  Sums photo_{}, result_{};

  static void add(Sums& sums, const Floats& pixels) {
    sums[0] += static_cast<double>(pixels.size() / 3);
    for (std::size_t i = 0; i < pixels.size(); i++) {
      const double value = static_cast<double>(std::min(1.0F, std::max(0.0F, pixels[i]))) - 0.5;
      sums[1 + i % 3] += value;
      sums[4 + i % 3] += value * value;
    }
  }
  static std::pair<double, double> statistics(const Sums& sums, std::size_t k) {
    const double count = std::max(sums[0], 1.0), mean = sums[1 + k] / count;
    return {mean + 0.5, std::sqrt(std::max(sums[4 + k] / count - mean * mean, 0.0))};
  }
};

// One line of the dataflow: run `component` with its inputs (argument, tensor); its output becomes the tensor `result`.
struct Call {
  std::string component;
  std::vector<std::pair<std::string, std::string>> inputs;
  std::string result;
};

// What an app needs of a bundle's manifest.
struct Manifest {
  int tile = 0, overlap = 0, scale = 2;
  bool linear = false, noise = false;
  std::string color_fix = "none";
  std::vector<Call> dataflow;
};

// The engine: a component's inputs by name to its output, all float32 with the shapes that the manifest gives.
using Run = std::function<Floats(const std::string& component, const Tensors& inputs)>;

// A bundle's dataflow as a function from a tile to its upscaled tile, for `upscale_blocks`. `constants`: tensors that the bundle keeps; `noise`: what draws
// the noise of a tile from its position, where the model wants some. Throws std::invalid_argument when noise is wanted and not given.
inline UpscaleTile dataflow(Manifest manifest, Run run, Tensors constants = {}, std::function<Floats(int y, int x)> noise = nullptr) {
  if (manifest.noise && !noise) throw std::invalid_argument("f2i::dataflow: this model takes noise; give a function that draws it");
  return [manifest = std::move(manifest), run = std::move(run), constants = std::move(constants), noise = std::move(noise)](
             const Floats& lr, int y, int x) {
    Tensors tensors = constants;
    tensors["lr"] = lr;
    if (manifest.noise) tensors["noise"] = noise(y, x);
    for (const Call& call : manifest.dataflow) {
      Tensors bound;
      for (const auto& [argument, tensor] : call.inputs) bound[argument] = tensors.at(tensor);
      tensors[call.result] = run(call.component, bound);
    }
    return tensors.at("sr");
  };
}

// A bundle's plan for a photo: its tile size, overlap, scale and window.
inline TilePlan photo_plan(const Manifest& manifest, int height, int width) {
  TilePlan plan{height, width, manifest.tile, manifest.overlap, manifest.scale};
  plan.linear = manifest.linear;
  plan.prepare();
  return plan;
}

namespace detail {

// As much of JSON as a manifest needs. Throws std::invalid_argument with the place of what is wrong.
struct Json {
  enum Kind { null, boolean, number, text, list, object } kind = null;
  double value = 0;
  std::string words;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> fields;

  // The field of that name; null where there is none.
  const Json* find(const std::string& name) const {
    const auto found = std::find_if(fields.begin(), fields.end(), [&](const auto& field) { return field.first == name; });
    return found == fields.end() ? nullptr : &found->second;
  }
  const Json& operator[](const std::string& name) const {
    if (const Json* field = find(name)) return *field;
    throw std::invalid_argument("f2i::read_manifest: there is no " + name);
  }
};

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json document() {
    Json read = any(0);
    if (next() != '\0') fail();
    return read;
  }

 private:
  const std::string& text_;
  std::size_t at_ = 0;

  [[noreturn]] void fail() const { throw std::invalid_argument("f2i::read_manifest: no JSON at byte " + std::to_string(at_)); }
  char next() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) at_++;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char sign) { return next() == sign && ++at_; }
  void expect(const std::string& word) {
    if (text_.compare(at_, word.size(), word) != 0) fail();
    at_ += word.size();
  }

  Json any(int depth) {
    if (depth > 64) fail();
    Json read;
    const char sign = next();
    if (sign == '{') {
      read.kind = Json::object;
      at_++;
      for (bool more = !take('}'); more;) {
        if (next() != '"') fail();
        std::string name = string();
        if (!take(':')) fail();
        read.fields.emplace_back(std::move(name), any(depth + 1));
        more = take(',');
        if (!more && !take('}')) fail();
      }
    } else if (sign == '[') {
      read.kind = Json::list;
      at_++;
      for (bool more = !take(']'); more;) {
        read.items.push_back(any(depth + 1));
        more = take(',');
        if (!more && !take(']')) fail();
      }
    } else if (sign == '"') {
      read.kind = Json::text;
      read.words = string();
    } else if (sign == 't' || sign == 'f') {
      read.kind = Json::boolean;
      read.value = sign == 't';
      expect(sign == 't' ? "true" : "false");
    } else if (sign == 'n') {
      expect("null");
    } else {
      read.kind = Json::number;
      const std::size_t end = std::min(text_.find_first_not_of("+-.0123456789eE", at_), text_.size());
      const std::string digits = text_.substr(at_, end - at_);
      char* stop = nullptr;
      read.value = std::strtod(digits.c_str(), &stop);
      if (digits.empty() || *stop != '\0') fail();
      at_ = end;
    }
    return read;
  }

  // Names and words of a manifest are ASCII; what is escaped as \u keeps its lowest byte only.
  std::string string() {
    std::string read;
    for (at_++; at_ < text_.size() && text_[at_] != '"'; at_++) {
      if (text_[at_] != '\\') {
        read += text_[at_];
        continue;
      }
      if (++at_ >= text_.size()) fail();
      const char sign = text_[at_];
      if (sign == 'u') {
        if (at_ + 4 >= text_.size()) fail();
        read += static_cast<char>(std::strtol(text_.substr(at_ + 3, 2).c_str(), nullptr, 16));
        at_ += 4;
      } else {
        read += sign == 'n' ? '\n' : sign == 't' ? '\t' : sign == 'r' ? '\r' : sign == 'b' ? '\b' : sign == 'f' ? '\f' : sign;
      }
    }
    if (at_ >= text_.size()) fail();
    at_++;
    return read;
  }
};

}  // namespace detail

// Reads what an app needs of `manifest.json`. Throws std::invalid_argument when it is no manifest.
inline Manifest read_manifest(const std::string& text) {
  const detail::Json json = detail::JsonReader(text).document();
  const detail::Json& tile = json["tile"];
  Manifest manifest;
  manifest.tile = static_cast<int>(tile["size"].value);
  manifest.overlap = static_cast<int>(tile["overlap"].value);
  manifest.scale = static_cast<int>(tile["scale"].value);
  if (const detail::Json* window = tile.find("window")) manifest.linear = window->words == "linear";
  if (const detail::Json* noise = json.find("noise")) manifest.noise = noise->value != 0;
  if (const detail::Json* color_fix = json.find("color_fix")) manifest.color_fix = color_fix->words;
  for (const detail::Json& line : json["dataflow"].items) {
    Call call{line["component"].words, {}, line["result"].words};
    for (const auto& [argument, tensor] : line["inputs"].fields) call.inputs.emplace_back(argument, tensor.words);
    manifest.dataflow.push_back(std::move(call));
  }
  return manifest;
}

}  // namespace f2i

#endif  // F2I_TILES_HPP
