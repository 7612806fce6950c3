// Threads for callers without a pool of their own: worker processes want one, a script may ask for more.
#pragma once
#include <algorithm>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

#include "common/parallel.h"

namespace toco {

inline Parallel threads(int count) {
  return {count, [count](int64_t size, int64_t grain, const Body& body) {
            const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(count, size / std::max<int64_t>(grain, 1)));
            std::vector<std::exception_ptr> failures(parts);
            const auto run = [&](int64_t part) {
              try {
                body(size * part / parts, size * (part + 1) / parts, int(part));
              } catch (...) {
                failures[part] = std::current_exception();
              }
            };
            std::vector<std::thread> others;
            int64_t part = 1;
            try {
              for (; part < parts; ++part) others.emplace_back(run, part);
            } catch (const std::system_error&) {  // no more threads to be had
            }
            for (; part < parts; ++part) run(part);
            run(0);
            for (std::thread& other : others) other.join();
            for (const std::exception_ptr& failure : failures)
              if (failure) std::rethrow_exception(failure);
          }};
}

}  // namespace toco
