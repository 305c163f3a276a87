#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "error.h"

namespace fqt {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  // Folders can be opened too; their size is nonsense.
  if (size < 0 || !IsFile(path)) throw Error(kDamaged, "cannot read " + path);
  std::string content(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(content.data(), size)) throw Error(kDamaged, "cannot read " + path);
  return content;
}

bool IsFile(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

namespace {

bool WriteAll(int file, const std::string& content) {
  for (size_t done = 0; done < content.size();) {
    const ssize_t count = write(file, content.data() + done, content.size() - done);
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) done += static_cast<size_t>(count);
  }
  return fsync(file) == 0;
}

void SyncFolder(const std::string& path) {
  const int folder = open(path.c_str(), O_RDONLY | O_DIRECTORY);
  if (folder < 0) return;
  fsync(folder);
  close(folder);
}

}  // namespace

void ReplaceFile(const std::string& path, const std::string& content) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const std::string name = path + ".XXXXXX";
  std::vector<char> temporary(name.begin(), name.end());
  temporary.push_back('\0');
  const int file = mkstemp(temporary.data());
  bool good = file >= 0 && WriteAll(file, content);
  if (file >= 0) {
    const mode_t mask = umask(0);
    umask(mask);
    good = fchmod(file, 0666 & ~mask) == 0 && good;  // mkstemp makes it private
    good = close(file) == 0 && good;
    good = good && rename(temporary.data(), path.c_str()) == 0;
  }
  if (!good) {
    const std::string reason = std::strerror(errno);
    if (file >= 0) unlink(temporary.data());
    throw Error(kCannotWrite, "cannot write " + path + ": " + reason);
  }
  SyncFolder(parent.empty() ? "." : parent.string());
}

}  // namespace fqt
